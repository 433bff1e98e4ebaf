//! The picture to draw from, and the mask that says what of it is drawn anew.

use crate::parameters::Parameters;
use clap::Args;
use image::DynamicImage;
use serde::{Deserialize, Serialize};
use tch_diffusers::Error;
use tch_diffusers::image_processor::{ResizeMode, VaeImageProcessor};

/// What is drawn from. It decides the pixels, so it is kept with the picture: the files by their paths.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "From a picture")]
#[serde(default)]
pub(crate) struct Source {
    /// A picture to start from, PNG or JPEG; transparency is left out
    #[arg(long, value_name = "PICTURE")]
    image: Option<String>,
    /// Draws only where this picture is white, and leaves --image where it is black
    #[arg(long, value_name = "PICTURE")]
    mask: Option<String>,
    /// How much of --image is drawn anew, 0 to 1 [default: 0.8; with --mask 1]
    #[arg(long)]
    strength: Option<f64>,
    /// Draws the part around the mask and this many pixels more at the full size, and puts it back into --image
    #[arg(long, value_name = "PIXELS")]
    pub(crate) padding_mask_crop: Option<i64>,
}

/// What is drawn from, read and looked at.
#[derive(Debug)]
pub(crate) struct Pictures {
    pub(crate) image: DynamicImage,
    pub(crate) mask: Option<DynamicImage>,
    pub(crate) strength: f64,
}

impl Source {
    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            image: self.image.clone().or(base.image),
            mask: self.mask.clone().or(base.mask),
            strength: self.strength.or(base.strength),
            padding_mask_crop: self.padding_mask_crop.or(base.padding_mask_crop),
        }
    }

    /// Reads the pictures, before any model is, and finds what does not fit; nothing without `--image`.
    pub(crate) fn read(&self, parameters: &Parameters) -> Result<Option<Pictures>, Error> {
        self.check(parameters)?;
        let Some(image) = &self.image else { return Ok(None) };
        let image = VaeImageProcessor::convert_to_rgb(&open("--image", image)?)?;
        let mask = self.mask.as_ref().map(|mask| open("--mask", mask)).transpose()?;
        let (image, mask) = match mask {
            None => (sized(image, parameters)?, None),
            Some(mask) => {
                self.check_mask(&image, &mask)?;
                (image, Some(mask))
            }
        };
        let strength = self.strength();
        Ok(Some(Pictures { image, mask, strength }))
    }

    /// Whether there is a picture to draw from.
    pub(crate) fn is_given(&self) -> bool {
        self.image.is_some()
    }

    fn strength(&self) -> f64 {
        self.strength.unwrap_or(if self.mask.is_some() { 1.0 } else { 0.8 })
    }

    fn check(&self, parameters: &Parameters) -> Result<(), Error> {
        let alone = [
            ("--mask", "--image", self.mask.is_some() && self.image.is_none()),
            ("--strength", "--image", self.strength.is_some() && self.image.is_none()),
            ("--padding-mask-crop", "--mask", self.padding_mask_crop.is_some() && self.mask.is_none()),
        ];
        if let Some((option, other, _)) = alone.into_iter().find(|(.., alone)| *alone) {
            return Err(Error::Argument(format!("{option} goes with {other}")));
        }
        if self.image.is_none() {
            return Ok(());
        }
        let (strength, steps) = (self.strength(), parameters.steps());
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::Argument(format!("--strength {strength}: it has to be between 0 and 1")));
        }
        if (steps as f64 * strength) < 1.0 {
            return Err(Error::Argument(format!("--strength {strength} leaves none of {steps} steps: raise either")));
        }
        if parameters.guidance_rescale != 0.0 {
            return Err(Error::Argument("--guidance-rescale goes without --image".into()));
        }
        if self.padding_mask_crop.is_some_and(|pixels| pixels < 0) {
            return Err(Error::Argument("--padding-mask-crop has to be 0 or more".into()));
        }
        Ok(())
    }

    fn check_mask(&self, image: &DynamicImage, mask: &DynamicImage) -> Result<(), Error> {
        let Some(pixels) = self.padding_mask_crop else { return Ok(()) };
        let (own, other) = ((image.width(), image.height()), (mask.width(), mask.height()));
        if own != other {
            return Err(Error::Argument(format!(
                "--padding-mask-crop needs a mask of the picture's size, {}x{}, but it is {}x{}",
                own.0, own.1, other.0, other.1
            )));
        }
        VaeImageProcessor::get_crop_region(mask, 8, 8, pixels)
            .map(|_| ())
            .map_err(|error| Error::Argument(format!("--mask: {error}")))
    }
}

/// The picture at `path`, with 8 bits a channel.
fn open(option: &str, path: &str) -> Result<DynamicImage, Error> {
    let refuse = |error: image::ImageError| Error::Argument(format!("{option} {path}: {error}"));
    let reader = image::ImageReader::open(path).map_err(|error| refuse(error.into()))?;
    let reader = reader.with_guessed_format().map_err(|error| refuse(error.into()))?;
    let image = reader.decode().map_err(refuse)?;
    Ok(match image {
        image @ (DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_)) => image,
        image => image.to_rgb8().into(),
    })
}

/// The picture in the size that is asked for.
fn sized(image: DynamicImage, parameters: &Parameters) -> Result<DynamicImage, Error> {
    let (own_width, own_height) = (i64::from(image.width()), i64::from(image.height()));
    let asked = [parameters.width, parameters.height];
    if asked.into_iter().flatten().any(|side| side < 8 || side % 8 != 0) {
        return Err(Error::Argument("--width and --height have to be divisible by 8".into()));
    }
    let (width, height) = (asked[0].unwrap_or(own_width), asked[1].unwrap_or(own_height));
    if width < 8 || height < 8 {
        return Err(Error::Argument(format!("--image: a picture of {width}x{height} is too small to draw from")));
    }
    match asked {
        [None, None] => Ok(image),
        _ => VaeImageProcessor::default().resize(&image, height, width, ResizeMode::Default),
    }
}
