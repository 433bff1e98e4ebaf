//! Pictures in another size, by separable filters in fixed-point arithmetic.

use super::Raster;
use super::convert::{divided, premultiplied};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::f64::consts::PI;

/// The bits after the point of a weight.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// What weighs the pixels around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Filter {
    Bilinear,
    Bicubic,
    #[default]
    Lanczos,
}

impl Filter {
    /// How far it reaches, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel at distance `x`.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Self::Bilinear if distance < 1.0 => 1.0 - distance,
            Self::Bicubic if distance < 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// What one pixel of the result is made of: the weights of the pixels from `first` on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// What each of `outputs` pixels is made of, that stand for the part of `inputs` pixels from `from` to `to`.
fn taps(filter: Filter, inputs: usize, [from, to]: [f64; 2], outputs: usize) -> Vec<Taps> {
    let scale = (to - from) / outputs as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let taps = |output: usize| {
        let center = from + (output as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0);
        let last = ((center + support + 0.5) as i64).min(inputs as i64);
        let weights = (first..last).map(|input| filter.weight((input as f64 - center + 0.5) * inverse));
        let weights: Vec<f64> = weights.collect();
        let total = weights.iter().fold(0.0, |total, weight| total + weight);
        let shares = weights.into_iter().map(|weight| if total == 0.0 { weight } else { weight / total });
        Taps { first: first as usize, weights: shares.map(fixed).collect() }
    };
    (0..outputs).map(taps).collect()
}

/// A weight as a fixed-point number, rounded away from zero at halves.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn horizontal(image: &Raster, taps: &[Taps]) -> Raster {
    let channels = image.channels;
    let mut bytes = Vec::with_capacity(image.height * taps.len() * channels);
    for row in image.bytes.chunks_exact(image.width * channels) {
        for Taps { first, weights } in taps {
            let window = &row[first * channels..(first + weights.len()) * channels];
            let mut sums = [HALF; 4];
            for (pixel, weight) in window.chunks_exact(channels).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            bytes.extend(sums[..channels].iter().map(|sum| clip(*sum)));
        }
    }
    Raster { width: taps.len(), height: image.height, channels, bytes }
}

fn vertical(image: &Raster, taps: &[Taps]) -> Raster {
    let stride = image.width * image.channels;
    let mut bytes = Vec::with_capacity(stride * taps.len());
    for Taps { first, weights } in taps {
        let mut sums = vec![HALF; stride];
        for (row, weight) in image.bytes[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        bytes.extend(sums.into_iter().map(clip));
    }
    Raster { width: image.width, height: taps.len(), channels: image.channels, bytes }
}

/// `image` in another size.
///
/// # Errors
/// As [`resize_box`].
pub(crate) fn resize(image: &Raster, width: i64, height: i64, filter: Filter) -> Result<Raster> {
    resize_box(image, width, height, filter, [0, 0, image.width, image.height])
}

/// The part of `image` between `[left, top, right, bottom]` in another size. A part without height or width is read with
/// what lies around it.
///
/// # Errors
/// [`Error::Argument`] if there are no pixels, before or after.
pub(crate) fn resize_box(
    image: &Raster,
    width: i64,
    height: i64,
    filter: Filter,
    [left, top, right, bottom]: [usize; 4],
) -> Result<Raster> {
    let (Ok(columns), Ok(rows)) = (usize::try_from(width), usize::try_from(height)) else {
        return Err(Error::Argument(format!("a picture cannot be {width}x{height} pixels")));
    };
    if [columns, rows, image.width, image.height].contains(&0) {
        let (from_width, from_height) = (image.width, image.height);
        return Err(Error::Argument(format!(
            "a picture of {from_width}x{from_height} cannot become one of {width}x{height}: there have to be pixels"
        )));
    }
    let whole = [left, top, right, bottom] == [0, 0, image.width, image.height];
    if whole && (columns, rows) == (image.width, image.height) {
        return Ok(image.clone());
    }
    let transparent = matches!(image.channels, 2 | 4);
    let mut resized = if transparent { Cow::Owned(premultiplied(image)) } else { Cow::Borrowed(image) };
    let across = columns != image.width || [left, right] != [0, image.width];
    let down = rows != image.height || [top, bottom] != [0, image.height];
    let fewer = |from: usize, to: usize| from as i64 - to as i64;
    let down_first = rows < image.height && fewer(image.height, rows) > 2 * fewer(image.width, columns);
    // Each pass rounds, so that their order counts.
    for pass_down in [down_first, !down_first] {
        if pass_down && down {
            let taps = taps(filter, image.height, [top as f64, bottom as f64], rows);
            resized = Cow::Owned(vertical(&resized, &taps));
        } else if !pass_down && across {
            let taps = taps(filter, image.width, [left as f64, right as f64], columns);
            resized = Cow::Owned(horizontal(&resized, &taps));
        }
    }
    Ok(if transparent { divided(&resized) } else { resized.into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_picture_stays_plain_in_every_size() {
        let plain = Raster { width: 7, height: 5, channels: 3, bytes: vec![200; 105] };
        for (width, height) in [(3, 2), (7, 9), (40, 5), (1, 1)] {
            for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                let resized = resize(&plain, width, height, filter).unwrap();
                assert!(resized.bytes.iter().all(|byte| *byte == 200), "{width}x{height} {filter:?}");
                assert_eq!(resized.bytes.len() as i64, width * height * 3);
            }
        }
    }

    #[test]
    fn a_picture_without_pixels_is_refused() {
        let picture = Raster::black(4, 4, 1);
        assert!(matches!(resize(&picture, 0, 4, Filter::Lanczos), Err(Error::Argument(_))));
        assert!(matches!(resize(&picture, 4, -1, Filter::Lanczos), Err(Error::Argument(_))));
        assert!(matches!(resize(&Raster::black(0, 4, 1), 4, 4, Filter::Lanczos), Err(Error::Argument(_))));
    }
}
