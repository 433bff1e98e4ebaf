//! Pictures as Pillow computes them, to the bit: what diffusers' image processors leave to it.
//!
//! Mirrors `Resample.c`, `Convert.c`, `BoxBlur.c`, `Paste.c`, `Crop.c` and `AlphaComposite.c` of Pillow 13.0.

mod blur;
mod composite;
mod convert;
mod resample;

pub(crate) use blur::gaussian_blur;
pub(crate) use composite::{alpha_composite, masked};
pub(crate) use convert::{invert, to_grey, to_rgb, to_rgba};
pub(crate) use resample::{Filter, resize, resize_box};

use crate::error::{Error, Result};
use image::{ColorType, DynamicImage, GrayAlphaImage, GrayImage, RgbImage, RgbaImage};

/// A picture of 8 bits a channel: grey (`L`), colour (`RGB`), or either with transparency (`LA`, `RGBA`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raster {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// 1 to 4; of 2 and 4 the last is the transparency.
    pub(crate) channels: usize,
    /// Row by row, pixel by pixel.
    pub(crate) bytes: Vec<u8>,
}

impl Raster {
    /// A black picture; if it can be transparent, it is.
    pub(crate) fn black(width: usize, height: usize, channels: usize) -> Self {
        Self { width, height, channels, bytes: vec![0; width * height * channels] }
    }

    /// # Errors
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel.
    pub(crate) fn of(image: &DynamicImage) -> Result<Self> {
        let channels = match image.color() {
            ColorType::L8 => 1,
            ColorType::La8 => 2,
            ColorType::Rgb8 => 3,
            ColorType::Rgba8 => 4,
            other => {
                let text = format!("a picture of colour type {other:?}: convert it to 8 bits, such as Rgb8 or L8");
                return Err(Error::Unsupported(text));
            }
        };
        let (width, height) = (image.width() as usize, image.height() as usize);
        Ok(Self { width, height, channels, bytes: image.as_bytes().to_vec() })
    }

    /// The picture once more as the `image` crate has it.
    pub(crate) fn into_image(self) -> Result<DynamicImage> {
        let Self { width, height, channels, bytes } = self;
        let refused = || Error::Shape(format!("a picture of {width}x{height} is too large"));
        let side = |side: usize| u32::try_from(side).map_err(|_| refused());
        let (columns, rows) = (side(width)?, side(height)?);
        let image = match channels {
            1 => GrayImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
            2 => GrayAlphaImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
            3 => RgbImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
            _ => RgbaImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
        };
        image.ok_or_else(refused)
    }

    /// The pixels, each with its channels.
    pub(crate) fn pixels(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.channels)
    }

    /// Each pixel as `convert` has it, in `channels`.
    pub(crate) fn map<const N: usize>(&self, convert: impl Fn(&[u8]) -> [u8; N]) -> Self {
        let bytes = self.pixels().flat_map(convert).collect();
        Self { width: self.width, height: self.height, channels: N, bytes }
    }

    /// The part between `[left, top, right, bottom]`; what lies outside the picture is black, or transparent.
    ///
    /// # Errors
    /// [`Error::Argument`] for a part of no size.
    pub(crate) fn crop(&self, [left, top, right, bottom]: [i64; 4]) -> Result<Self> {
        let (Ok(width), Ok(height)) = (usize::try_from(right - left), usize::try_from(bottom - top)) else {
            return Err(Error::Argument(format!("the part {:?} has no size", [left, top, right, bottom])));
        };
        let mut part = Self::black(width, height, self.channels);
        part.paste(self, -left, -top);
        Ok(part)
    }

    /// Puts `image`, which has the same channels, where its upper left corner is at `left` and `top`; what lies outside is
    /// left out.
    pub(crate) fn paste(&mut self, image: &Self, left: i64, top: i64) {
        let overlap = |offset: i64, length: usize, room: usize| {
            let start = offset.max(0);
            let end = (offset + length as i64).min(room as i64);
            (start < end).then(|| (start as usize, (start - offset) as usize, (end - start) as usize))
        };
        let Some((x, from_x, columns)) = overlap(left, image.width, self.width) else { return };
        let Some((y, from_y, rows)) = overlap(top, image.height, self.height) else { return };
        let channels = self.channels;
        for row in 0..rows {
            let to = ((y + row) * self.width + x) * channels;
            let from = ((from_y + row) * image.width + from_x) * channels;
            let length = columns * channels;
            self.bytes[to..to + length].copy_from_slice(&image.bytes[from..from + length]);
        }
    }
}
