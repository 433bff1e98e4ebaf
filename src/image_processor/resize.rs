//! Pictures in the size that is asked for.

use super::VaeImageProcessor;
use crate::error::{Error, Result};
use crate::utils::pil::{Filter, Raster, resize, resize_box, to_rgb};
use image::DynamicImage;
use std::str::FromStr;

/// How a picture is brought to another shape: `resize_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeMode {
    /// It is stretched.
    #[default]
    Default,
    /// It keeps its shape within the size, and its edges fill what remains.
    Fill,
    /// It keeps its shape around the size, and what goes beyond is cut off.
    Crop,
}

impl FromStr for ResizeMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "default" => Ok(Self::Default),
            "fill" => Ok(Self::Fill),
            "crop" => Ok(Self::Crop),
            other => Err(Error::Argument(format!("unknown resize mode `{other}`: use default, fill or crop"))),
        }
    }
}

/// What weighs the pixels around when a picture is resized, with Pillow's own numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resample {
    /// `bilinear`, also called `linear`.
    Bilinear,
    /// `bicubic`.
    Bicubic,
    /// `lanczos`.
    #[default]
    Lanczos,
}

impl Resample {
    fn filter(self) -> Filter {
        match self {
            Self::Bilinear => Filter::Bilinear,
            Self::Bicubic => Filter::Bicubic,
            Self::Lanczos => Filter::Lanczos,
        }
    }
}

impl FromStr for Resample {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "linear" | "bilinear" => Ok(Self::Bilinear),
            "bicubic" => Ok(Self::Bicubic),
            "lanczos" => Ok(Self::Lanczos),
            "nearest" => Err(Error::Unsupported("resampling by `nearest` is not supported: use lanczos".into())),
            other => Err(Error::Argument(format!("unknown filter `{other}`: use bilinear, bicubic or lanczos"))),
        }
    }
}

impl VaeImageProcessor {
    /// `image` in another size, in pixels. What keeps its shape comes back in colour, without transparency.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are no pixels, before or after; [`Error::Unsupported`] for pictures of other than 8
    /// bits a channel.
    pub fn resize(&self, image: &DynamicImage, height: i64, width: i64, mode: ResizeMode) -> Result<DynamicImage> {
        self.resize_raster(&Raster::of(image)?, height, width, mode)?.into_image()
    }

    pub(super) fn resize_raster(&self, image: &Raster, height: i64, width: i64, mode: ResizeMode) -> Result<Raster> {
        let filter = self.resample.filter();
        match mode {
            ResizeMode::Default => resize(image, width, height, filter),
            ResizeMode::Fill => Placed::within(image, width, height, filter)?.filled(width, height),
            ResizeMode::Crop => Ok(Placed::around(image, width, height, filter)?.on_black(width, height)),
        }
    }
}

/// A picture resized with its shape kept, and where its upper left corner comes to lie.
struct Placed {
    image: Raster,
    left: i64,
    top: i64,
}

impl Placed {
    /// As large as fits within the size.
    fn within(image: &Raster, width: i64, height: i64, filter: Filter) -> Result<Self> {
        let (ratio, own, by_height, by_width) = shapes(image, width, height)?;
        let columns = if ratio < own { width } else { by_height };
        let rows = if ratio >= own { height } else { by_width };
        Self::resized(image, (columns, rows), (width, height), filter)
    }

    /// As small as covers the size.
    fn around(image: &Raster, width: i64, height: i64, filter: Filter) -> Result<Self> {
        let (ratio, own, by_height, by_width) = shapes(image, width, height)?;
        let columns = if ratio > own { width } else { by_height };
        let rows = if ratio <= own { height } else { by_width };
        Self::resized(image, (columns, rows), (width, height), filter)
    }

    fn resized(
        image: &Raster,
        (columns, rows): (i64, i64),
        (width, height): (i64, i64),
        filter: Filter,
    ) -> Result<Self> {
        let image = resize(image, columns, rows, filter)?;
        Ok(Self { image, left: width / 2 - columns / 2, top: height / 2 - rows / 2 })
    }

    fn on_black(&self, width: i64, height: i64) -> Raster {
        let mut canvas = Raster::black(width as usize, height as usize, 3);
        canvas.paste(&to_rgb(&self.image), self.left, self.top);
        canvas
    }

    /// Its first and last rows, or columns, fill what remains.
    fn filled(&self, width: i64, height: i64) -> Result<Raster> {
        let mut canvas = self.on_black(width, height);
        let (columns, rows) = (self.image.width, self.image.height);
        let mut fill = |size: (i64, i64), edge: [usize; 4], left: i64, top: i64| -> Result<()> {
            let edge = resize_box(&self.image, size.0, size.1, Filter::Bicubic, edge)?;
            canvas.paste(&to_rgb(&edge), left, top);
            Ok(())
        };
        if rows < height as usize && self.top > 0 {
            let size = (width, self.top);
            fill(size, [0, 0, columns, 0], 0, 0)?;
            fill(size, [0, rows, columns, rows], 0, self.top + rows as i64)?;
        } else if columns < width as usize && self.left > 0 {
            let size = (self.left, height);
            fill(size, [0, 0, 0, rows], 0, 0)?;
            fill(size, [columns, 0, columns, rows], self.left + columns as i64, 0)?;
        }
        Ok(canvas)
    }
}

/// The shape that is asked for, the picture's own, and its width and height if the other side is as asked for.
fn shapes(image: &Raster, width: i64, height: i64) -> Result<(f64, f64, i64, i64)> {
    if width < 1 || height < 1 || image.width == 0 || image.height == 0 {
        let (from_width, from_height) = (image.width, image.height);
        return Err(Error::Argument(format!(
            "a picture of {from_width}x{from_height} cannot become one of {width}x{height}: there have to be pixels"
        )));
    }
    let (columns, rows) = (image.width as i64, image.height as i64);
    let (ratio, own) = (width as f64 / height as f64, columns as f64 / rows as f64);
    Ok((ratio, own, columns * height / rows, rows * width / columns))
}
