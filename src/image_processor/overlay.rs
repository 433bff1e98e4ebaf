//! The part of a picture that is painted anew, and putting it back.

use super::{ResizeMode, VaeImageProcessor};
use crate::error::{Error, Result};
use crate::utils::pil::{Raster, alpha_composite, gaussian_blur, invert, masked, to_grey, to_rgb, to_rgba};
use image::DynamicImage;

/// A part of a picture, in pixels: its upper left corner, and the first column and row beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropRegion {
    /// The first column.
    pub x1: i64,
    /// The first row.
    pub y1: i64,
    /// The first column beyond.
    pub x2: i64,
    /// The first row beyond.
    pub y2: i64,
}

impl CropRegion {
    pub(super) fn corners(self) -> [i64; 4] {
        [self.x1, self.y1, self.x2, self.y2]
    }

    fn width(self) -> i64 {
        self.x2 - self.x1
    }

    fn height(self) -> i64 {
        self.y2 - self.y1
    }
}

impl VaeImageProcessor {
    /// `image` in colour, without transparency.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel.
    pub fn convert_to_rgb(image: &DynamicImage) -> Result<DynamicImage> {
        to_rgb(&Raster::of(image)?).into_image()
    }

    /// `image` in grey, without transparency.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel.
    pub fn convert_to_grayscale(image: &DynamicImage) -> Result<DynamicImage> {
        to_grey(&Raster::of(image)?).into_image()
    }

    /// `image`, such as a mask, with its edges softened: a Gaussian blur of `blur_factor` pixels, 4 in diffusers by default.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel; [`Error::Argument`] for a negative factor.
    pub fn blur(image: &DynamicImage, blur_factor: f32) -> Result<DynamicImage> {
        if !(0.0..=10_000.0).contains(&blur_factor) {
            return Err(Error::Argument(format!("`blur_factor` is {blur_factor}: give 0 or more pixels")));
        }
        gaussian_blur(&Raster::of(image)?, blur_factor).into_image()
    }

    /// The smallest part of `mask_image` that holds all that is not black, with `pad` pixels around, made as wide for its
    /// height as `width` is for `height` where the picture has the room.
    ///
    /// # Errors
    /// [`Error::Argument`] for a mask that is black all over, or sizes below 1; [`Error::Unsupported`] for pictures of
    /// other than 8 bits a channel.
    // Differs from diffusers: there, a mask that is black all over has a part without a meaning.
    pub fn get_crop_region(mask_image: &DynamicImage, width: i64, height: i64, pad: i64) -> Result<CropRegion> {
        if width < 1 || height < 1 || pad < 0 {
            let text = format!("no part of a mask can be {width}x{height} with {pad} pixels around");
            return Err(Error::Argument(text));
        }
        let mask = to_grey(&Raster::of(mask_image)?);
        let Some([left, top, right, bottom]) = painted(&mask) else {
            return Err(Error::Argument("the mask is black all over: there is nothing to paint".into()));
        };
        let (columns, rows) = (mask.width as i64, mask.height as i64);
        let (mut x1, mut x2) = (left.saturating_sub(pad).max(0), right.saturating_add(pad).min(columns));
        let (mut y1, mut y2) = (top.saturating_sub(pad).max(0), bottom.saturating_add(pad).min(rows));
        let ratio = width as f64 / height as f64;
        if (x2 - x1) as f64 / (y2 - y1) as f64 > ratio {
            (y1, y2) = widened(y1, y2, (x2 - x1) as f64 / ratio, rows);
        } else {
            (x1, x2) = widened(x1, x2, (y2 - y1) as f64 * ratio, columns);
        }
        Ok(CropRegion { x1, y1, x2, y2 })
    }

    /// Puts `image` where `mask` is white on `init_image`, and between where it is grey. `image` stands for the part of
    /// `init_image` that `crop_coords` names, or for all of it. The result is in colour.
    ///
    /// # Errors
    /// [`Error::Argument`] if the mask is of another size than `init_image`, or `image` where it stands for all of it;
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel.
    pub fn apply_overlay(
        &self,
        mask: &DynamicImage,
        init_image: &DynamicImage,
        image: &DynamicImage,
        crop_coords: Option<CropRegion>,
    ) -> Result<DynamicImage> {
        let (mask, init_image, mut image) = (Raster::of(mask)?, Raster::of(init_image)?, Raster::of(image)?);
        let size = |raster: &Raster| (raster.width, raster.height);
        if size(&mask) != size(&init_image) {
            let ((width, height), (columns, rows)) = (size(&mask), size(&init_image));
            return Err(Error::Argument(format!("the mask is {width}x{height}, but the picture is {columns}x{rows}")));
        }
        let kept = masked(&to_rgba(&init_image), &invert(&to_grey(&mask)));
        if let Some(region) = crop_coords {
            let part = self.resize_raster(&image, region.height(), region.width(), ResizeMode::Crop)?;
            image = Raster::black(init_image.width, init_image.height, 3);
            image.paste(&part, region.x1, region.y1);
        }
        if size(&image) != size(&init_image) {
            let ((width, height), (columns, rows)) = (size(&image), size(&init_image));
            return Err(Error::Argument(format!("a picture of {width}x{height} cannot be put on {columns}x{rows}")));
        }
        to_rgb(&alpha_composite(&to_rgba(&image), &kept)).into_image()
    }
}

/// `[left, top, right, bottom]` of what is not black.
fn painted(mask: &Raster) -> Option<[i64; 4]> {
    let rows = || mask.bytes.chunks_exact(mask.width.max(1));
    let row_is = |row: &&[u8]| row.iter().any(|value| *value != 0);
    let column_is = |column: &usize| rows().any(|row| row[*column] != 0);
    let top = rows().position(|row| row_is(&row))?;
    let bottom = mask.height - rows().rev().position(|row| row_is(&row))?;
    let left = (0..mask.width).find(column_is)?;
    let right = (0..mask.width).rev().find(column_is)? + 1;
    Some([left, top, right, bottom].map(|side| side as i64))
}

/// The span from `start` to `end` made `length` long around its middle, and moved and cut to lie within `room`.
fn widened(start: i64, end: i64, length: f64, room: i64) -> (i64, i64) {
    let more = (length - (end - start) as f64) as i64;
    let (mut start, mut end) = (start - more.div_euclid(2), end + more - more.div_euclid(2));
    if end >= room {
        (start, end) = (start - (end - room), room);
    }
    if start < 0 {
        (start, end) = (0, end - start);
    }
    (start, end.min(room))
}
