//! From pictures to CLIP's input: the `feature_extractor` of a safety checker.
//!
//! Mirrors `CLIPImageProcessorPil` of `transformers/models/clip/image_processing_pil_clip.py` at 5.23, which is what
//! `CLIPImageProcessor` is where torchvision is not installed, with Pillow's own numbers.

use crate::configuration_utils::{ConfigMap, from_map, read_json, write_json};
use crate::error::{Error, Result};
use crate::utils::pil::{Filter, Raster, alpha_composite, resize, to_rgb, to_rgba};
use image::DynamicImage;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;
use tch::Tensor;

/// The name of its file.
const FILE: &str = "preprocessor_config.json";

/// A length in pixels for both sides, or what `preprocessor_config.json` says of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum ImageSize {
    /// Height and width, in pixels.
    Exact {
        /// In pixels.
        height: i64,
        /// In pixels.
        width: i64,
    },
    /// The shorter side, in pixels; the other one keeps the picture's shape.
    ShortestEdge {
        /// In pixels.
        shortest_edge: i64,
    },
    /// As old files have it: the shorter side of what is resized, and both sides of what is cropped.
    Side(i64),
}

/// Turns pictures into what a CLIP vision model looks at.
///
/// # Examples
/// ```
/// use tch_diffusers::image_processor::CLIPImageProcessor;
/// let picture = image::RgbImage::new(640, 480).into();
/// assert_eq!(CLIPImageProcessor::default().preprocess(&[picture])?.size(), [1, 3, 224, 224]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CLIPImageProcessor {
    /// Whether pictures are brought to colour, what is transparent over white; yes.
    pub do_convert_rgb: bool,
    /// Whether they are resized; yes.
    pub do_resize: bool,
    /// To what they are resized; a shorter side of 224 pixels.
    pub size: ImageSize,
    /// The filter by Pillow's number: 1 is lanczos, 2 bilinear, and 3, the default, bicubic.
    pub resample: i64,
    /// Whether their middle is cut out; yes.
    pub do_center_crop: bool,
    /// The size of what is cut out; 224 pixels each way. What a picture lacks is black.
    pub crop_size: ImageSize,
    /// Whether values are multiplied by `rescale_factor`; yes.
    pub do_rescale: bool,
    /// 1 / 255.
    pub rescale_factor: f64,
    /// Whether `image_mean` is taken from the values, which are divided by `image_std` then; yes.
    pub do_normalize: bool,
    /// One number for each channel.
    pub image_mean: Vec<f64>,
    /// One number for each channel.
    pub image_std: Vec<f64>,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for CLIPImageProcessor {
    fn default() -> Self {
        let mut other = ConfigMap::new();
        other.insert("image_processor_type".into(), Self::CLASS_NAME.into());
        Self {
            do_convert_rgb: true,
            do_resize: true,
            size: ImageSize::ShortestEdge { shortest_edge: 224 },
            resample: 3,
            do_center_crop: true,
            crop_size: ImageSize::Exact { height: 224, width: 224 },
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: vec![0.48145466, 0.4578275, 0.40821073],
            image_std: vec![0.26862954, 0.26130258, 0.27577711],
            other,
        }
    }
}

impl CLIPImageProcessor {
    /// transformers' name of the class.
    pub const CLASS_NAME: &'static str = "CLIPImageProcessor";

    /// Reads `preprocessor_config.json` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Config`] naming the file; [`Error::Unsupported`] for a filter that is not there.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(FILE);
        let map: ConfigMap = read_json(&path)?;
        let in_file = |error: Error| error.in_file(&path);
        let mut processor: Self = from_map(&map).map_err(in_file)?;
        // The name of the class is a default only where nothing is read.
        if !map.contains_key("image_processor_type") {
            processor.other.shift_remove("image_processor_type");
        }
        processor.filter().map_err(in_file)?;
        processor.lengths(&processor.image_mean, "image_mean").map_err(in_file)?;
        processor.lengths(&processor.image_std, "image_std").map_err(in_file)?;
        Ok(processor)
    }

    /// Writes `preprocessor_config.json` to `folder`, so that transformers reads it back.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let value = serde_json::to_value(self).map_err(|error| Error::Config(error.to_string()))?;
        let map: ConfigMap = serde_json::from_value(value).map_err(|error| Error::Config(error.to_string()))?;
        write_json(&folder.join(FILE), &map)
    }

    /// The pictures as one tensor.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` comes out, float32 on the CPU.
    ///
    /// # Errors
    /// [`Error::Argument`] for no pictures, pictures without pixels, or pictures that end up in several sizes;
    /// [`Error::Unsupported`] for pictures of other than 8 bits a channel, or a filter that is not there; [`Error::Config`]
    /// where the numbers of the channels do not fit.
    pub fn preprocess(&self, images: &[DynamicImage]) -> Result<Tensor> {
        let mut rasters = images.iter().map(|image| self.raster(image)).collect::<Result<Vec<_>>>()?;
        let shape = |raster: &Raster| [raster.channels, raster.height, raster.width];
        let Some(first) = rasters.first().map(shape) else {
            return Err(Error::Argument("there are no pictures to look at".into()));
        };
        if let Some(other) = rasters.iter().map(shape).find(|other| *other != first) {
            return Err(Error::Argument(format!("pictures of {other:?} and of {first:?} are no batch")));
        }
        let tables = self.tables(first[0])?;
        let mut values = Vec::with_capacity(rasters.iter().map(|raster| raster.bytes.len()).sum());
        for raster in rasters.drain(..) {
            for (channel, table) in tables.iter().enumerate() {
                values.extend(raster.pixels().map(|pixel| table[usize::from(pixel[channel])]));
            }
        }
        let [channels, height, width] = first.map(|side| side as i64);
        Ok(Tensor::f_from_slice(&values)?.f_view([-1, channels, height, width])?)
    }

    /// A picture in the mode and the size that are looked at.
    fn raster(&self, image: &DynamicImage) -> Result<Raster> {
        let raster = Raster::of(image)?;
        let coloured = if self.do_convert_rgb { Cow::Owned(over_white(&raster)) } else { Cow::Borrowed(&raster) };
        let resized = match self.do_resize {
            true => {
                let (height, width) = self.resized(coloured.height, coloured.width)?;
                check_size(height, width)?;
                resize(&coloured, width, height, self.filter()?)?
            }
            false => coloured.into_owned(),
        };
        if !self.do_center_crop {
            return Ok(resized);
        }
        let (height, width) = match self.crop_size {
            ImageSize::Exact { height, width } => (height, width),
            ImageSize::Side(side) => (side, side),
            ImageSize::ShortestEdge { .. } => {
                return Err(Error::Config("`crop_size` needs a height and a width".into()));
            }
        };
        check_size(height, width)?;
        let middle = |whole: usize, part: i64| (whole as i64 - part).div_euclid(2);
        let (left, top) = (middle(resized.width, width), middle(resized.height, height));
        resized.crop([left, top, left + width, top + height])
    }

    /// Height and width of a picture of `height` x `width` once it is resized.
    fn resized(&self, height: usize, width: usize) -> Result<(i64, i64)> {
        let side = match self.size {
            ImageSize::Exact { height, width } => return Ok((height, width)),
            ImageSize::ShortestEdge { shortest_edge } => shortest_edge,
            ImageSize::Side(side) => side,
        };
        if height == 0 || width == 0 {
            return Err(Error::Argument(format!("a picture of {width}x{height} has no pixels")));
        }
        let long = |short: usize, long: usize| (side as f64 * long as f64 / short as f64) as i64;
        Ok(if width <= height { (long(width, height), side) } else { (side, long(height, width)) })
    }

    fn filter(&self) -> Result<Filter> {
        match self.resample {
            1 => Ok(Filter::Lanczos),
            2 => Ok(Filter::Bilinear),
            3 => Ok(Filter::Bicubic),
            other => {
                Err(Error::Unsupported(format!("`resample` {other}: supported are 1 lanczos, 2 bilinear, 3 bicubic")))
            }
        }
    }

    fn lengths(&self, numbers: &[f64], key: &str) -> Result<()> {
        match numbers.len() {
            1..=4 => Ok(()),
            length => Err(Error::Config(format!("`{key}` has {length} numbers: there is one for each channel"))),
        }
    }

    /// What becomes of each of a channel's 256 values.
    fn tables(&self, channels: usize) -> Result<Vec<[f32; 256]>> {
        if self.do_normalize && [&self.image_mean, &self.image_std].iter().any(|numbers| numbers.len() != channels) {
            return Err(Error::Config(format!(
                "`image_mean` and `image_std` do not fit pictures of {channels} channels"
            )));
        }
        let table = |channel: usize| {
            std::array::from_fn(|value| {
                let scaled = if self.do_rescale { (value as f64 * self.rescale_factor) as f32 } else { value as f32 };
                match self.do_normalize {
                    true => (scaled - self.image_mean[channel] as f32) / self.image_std[channel] as f32,
                    false => scaled,
                }
            })
        };
        Ok((0..channels).map(table).collect())
    }
}

/// A file may ask for a picture of any size.
fn check_size(height: i64, width: i64) -> Result<()> {
    const MOST: i64 = 1 << 28;
    match height.checked_mul(width) {
        Some(1..=MOST) if height > 0 => Ok(()),
        _ => Err(Error::Config(format!("pictures cannot be brought to {width}x{height}: 1 to {MOST} pixels can be"))),
    }
}

/// In colour; what is transparent shows white.
fn over_white(image: &Raster) -> Raster {
    if !matches!(image.channels, 2 | 4) {
        return to_rgb(image);
    }
    let (width, height) = (image.width, image.height);
    let white = Raster { width, height, channels: 4, bytes: vec![255; width * height * 4] };
    to_rgb(&alpha_composite(&white, &to_rgba(image)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, RgbImage};

    #[test]
    fn the_file_of_stable_diffusion_1_5_is_read_and_written_back() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"crop_size": 224, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
            "do_resize": true, "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3, "size": 224}"#;
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let read = CLIPImageProcessor::from_pretrained(folder.path()).unwrap();
        let picture = DynamicImage::from(RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 9])));
        let pixels = |processor: &CLIPImageProcessor| processor.preprocess(std::slice::from_ref(&picture)).unwrap();
        assert_eq!(pixels(&read), pixels(&CLIPImageProcessor::default()));
        read.save_pretrained(folder.path()).unwrap();
        let written: ConfigMap = read_json(&folder.path().join(FILE)).unwrap();
        let before: ConfigMap = serde_json::from_str(text).unwrap();
        assert!(before.iter().all(|(key, value)| written[key] == *value), "{written:?}");
        assert!(!written.contains_key("image_processor_type"));
    }

    #[test]
    fn what_cannot_be_looked_at_is_named() {
        let processor = CLIPImageProcessor::default();
        assert!(matches!(processor.preprocess(&[]), Err(Error::Argument(_))));
        assert!(matches!(processor.preprocess(&[RgbImage::new(0, 4).into()]), Err(Error::Argument(_))));
        let as_it_is = CLIPImageProcessor { do_center_crop: false, ..processor.clone() };
        let sizes = [RgbImage::new(9, 9).into(), RgbImage::new(9, 18).into()];
        assert!(matches!(as_it_is.preprocess(&sizes), Err(Error::Argument(_))));
        let grey = CLIPImageProcessor { do_convert_rgb: false, ..processor.clone() };
        let error = grey.preprocess(&[GrayImage::new(9, 9).into()]).unwrap_err();
        assert!(error.to_string().contains("pictures of 1 channels"), "{error}");
        for side in [0, -224, i64::MAX] {
            let crop = CLIPImageProcessor { crop_size: ImageSize::Side(side), ..processor.clone() };
            let resize = CLIPImageProcessor { size: ImageSize::Side(side), ..processor.clone() };
            for processor in [crop, resize] {
                let error = processor.preprocess(&[RgbImage::new(9, 9).into()]).unwrap_err();
                assert!(matches!(error, Error::Config(_)), "{side}: {error}");
            }
        }
        let nearest = CLIPImageProcessor { resample: 0, ..processor };
        assert!(matches!(nearest.preprocess(&[RgbImage::new(9, 9).into()]), Err(Error::Unsupported(_))));
    }
}
