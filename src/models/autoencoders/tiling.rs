//! A picture in overlapping tiles, blended where they overlap.
//!
//! Mirrors `_tiled_encode`, `tiled_decode`, `blend_v` and `blend_h` of
//! `diffusers/models/autoencoders/autoencoder_kl.py` (0.42.1).

use crate::error::{Error, Result};
use tch::{Kind, Tensor};

/// Dimension of a picture's rows, and of its columns.
const HEIGHT: i64 = 2;
const WIDTH: i64 = 3;

/// How a picture is cut, and how what becomes of the tiles is put together. In pixels or latents, the same both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Side of a tile that goes in; the last ones may be smaller.
    pub(crate) size: i64,
    /// From one tile to the next, going in.
    pub(crate) step: i64,
    /// Rows and columns that are blended, coming out.
    pub(crate) blend: i64,
    /// Rows and columns of a tile that are kept, coming out.
    pub(crate) keep: i64,
}

impl Tiling {
    /// Runs `forward` on each tile of `x` and puts together what it gives.
    ///
    /// A tile is blended with the one above it first, then with the one to its left, both blended already. Two rows of
    /// tiles are held at a time.
    pub(super) fn run(self, x: &Tensor, forward: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if self.step <= 0 {
            return Err(Error::Argument(format!("tiles of {} overlap wholly: the step is {}", self.size, self.step)));
        }
        let (_, _, height, width) = x.size4()?;
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in starts(height, self.step) {
            let strip = x.f_narrow(HEIGHT, top, self.size.min(height - top))?;
            let mut row: Vec<Tensor> = Vec::new();
            for left in starts(width, self.step) {
                let tile = forward(&strip.f_narrow(WIDTH, left, self.size.min(width - left))?)?;
                if let Some(above) = above.get(row.len()) {
                    blend(above, &tile, HEIGHT, self.blend)?;
                }
                if let Some(left) = row.last() {
                    blend(left, &tile, WIDTH, self.blend)?;
                }
                row.push(tile);
            }
            let kept = row.iter().map(|tile| self.crop(tile)).collect::<Result<Vec<_>>>()?;
            rows.push(Tensor::f_cat(&kept, WIDTH)?);
            above = row;
        }
        Ok(Tensor::f_cat(&rows, HEIGHT)?)
    }

    /// The part of a tile that no other tile covers better.
    fn crop(self, tile: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = tile.size4()?;
        Ok(tile.f_narrow(HEIGHT, 0, self.keep.min(height))?.f_narrow(WIDTH, 0, self.keep.min(width))?)
    }
}

/// Where tiles begin along a side of `length`.
pub(crate) fn starts(length: i64, step: i64) -> impl Iterator<Item = i64> {
    (0..length).step_by(usize::try_from(step).unwrap_or(usize::MAX))
}

/// Fades the last rows (or columns) of `from` into the first ones of `into`, in place.
///
/// diffusers does this row by row, `from * (1 - y / extent) + into * (y / extent)`. All rows at once give the same bits
/// if the weights are as exact as scalars are in torch's kernels: float32 for the 16-bit types, each product rounded.
fn blend(from: &Tensor, into: &Tensor, dim: i64, extent: i64) -> Result<()> {
    let axis = usize::from(dim == WIDTH) + 2;
    let (from_length, into_length) = (from.size()[axis], into.size()[axis]);
    let extent = extent.min(from_length).min(into_length);
    if extent <= 0 {
        return Ok(());
    }
    let kind = into.kind();
    let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
    let share = |weight: &dyn Fn(f64) -> f64, part: &Tensor| -> Result<Tensor> {
        let weights: Vec<f64> = (0..extent).map(|y| weight(y as f64 / extent as f64)).collect();
        let weights = Tensor::f_from_slice(&weights)?.f_to_kind(wide)?.f_to_device(part.device())?;
        let shape = if dim == HEIGHT { [extent, 1] } else { [1, extent] };
        Ok(part.f_to_kind(wide)?.f_mul(&weights.f_view(shape)?)?.f_to_kind(kind)?)
    };
    let mut overlap = into.f_narrow(dim, 0, extent)?;
    let fading = share(&|t| 1.0 - t, &from.f_narrow(dim, from_length - extent, extent)?)?;
    let blended = fading.f_add(&share(&|t| t, &overlap)?)?;
    overlap.f_copy_(&blended)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{Generator, TensorExt};
    use tch::Device;

    /// diffusers' own loop.
    fn blend_row_by_row(from: &Tensor, into: &Tensor, dim: i64, extent: i64) {
        let length = from.size()[dim as usize];
        for y in 0..extent {
            let a = from.select(dim, length - extent + y) * (1.0 - y as f64 / extent as f64);
            let b = into.select(dim, y);
            b.shallow_clone().copy_(&(a + &b * (y as f64 / extent as f64)));
        }
    }

    #[test]
    fn blending_all_rows_at_once_gives_the_bits_of_row_by_row() {
        let mut generator = Generator::cpu(0).unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
            for (dim, extent) in [(HEIGHT, 7), (WIDTH, 12), (WIDTH, 1)] {
                let from = generator.randn([2, 3, 13, 16], Kind::Float).unwrap().to_kind(kind);
                let into = generator.randn([2, 3, 13, 16], Kind::Float).unwrap().to_kind(kind);
                let expected = into.copy();
                blend_row_by_row(&from, &expected, dim, extent);
                blend(&from, &into, dim, extent).unwrap();
                assert_eq!(into.max_abs_diff(&expected).unwrap(), 0.0, "{kind:?}, {extent} along {dim}");
            }
        }
    }

    #[test]
    fn tiles_that_overlap_wholly_are_refused() {
        let tiling = Tiling { size: 4, step: 0, blend: 4, keep: 0 };
        let x = Tensor::zeros([1, 1, 8, 8], (Kind::Float, Device::Cpu));
        assert!(matches!(tiling.run(&x, |tile| Ok(tile.shallow_clone())), Err(Error::Argument(_))));
    }
}
