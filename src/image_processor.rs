//! Between pictures and the tensors of a VAE, or of CLIP.
//!
//! Mirrors `VaeImageProcessor` of `diffusers/image_processor.py` (0.42.1).

mod clip_image_processor;
mod input;
mod overlay;
mod preprocess;
mod resize;

pub use clip_image_processor::{CLIPImageProcessor, ImageSize};
pub use input::ImageInput;
pub use overlay::CropRegion;
pub use preprocess::PreprocessOptions;
pub(crate) use preprocess::interpolate;
pub use resize::{Resample, ResizeMode};

use crate::error::{Error, Result};
use crate::torch::NumberExt;
use image::{DynamicImage, GrayImage, RgbImage};
use std::str::FromStr;
use tch::{Device, Kind, Tensor};

/// What a pipeline returns: `output_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputType {
    /// Pictures of 8 bits a channel: `pil`.
    #[default]
    Image,
    /// A tensor with values in [0, 1]: `pt`.
    Tensor,
    /// The latents, undecoded: `latent`.
    Latent,
}

impl FromStr for OutputType {
    type Err = Error;

    /// Differs from diffusers: there, unknown names mean `np`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "pil" | "image" => Ok(Self::Image),
            "pt" | "tensor" => Ok(Self::Tensor),
            "latent" => Ok(Self::Latent),
            other => Err(Error::Argument(format!("unknown output type `{other}`: use pil, pt or latent"))),
        }
    }
}

/// What a pipeline returned.
#[derive(Debug)]
pub enum Images {
    /// Pictures, in colour or, of one channel, grey.
    Image(Vec<DynamicImage>),
    /// `[batch, channels, height, width]` with values in [0, 1].
    Tensor(Tensor),
    /// `[batch, latent_channels, height, width]`.
    Latent(Tensor),
}

impl Images {
    /// The pictures.
    ///
    /// # Errors
    /// [`Error::Argument`] if the output type was another.
    pub fn into_images(self) -> Result<Vec<DynamicImage>> {
        match self {
            Self::Image(images) => Ok(images),
            Self::Tensor(_) | Self::Latent(_) => Err(not_images()),
        }
    }

    /// The pictures in colour; grey ones get three equal channels.
    ///
    /// # Errors
    /// [`Error::Argument`] if the output type was another.
    pub fn to_rgb(&self) -> Result<Vec<RgbImage>> {
        match self {
            Self::Image(images) => Ok(images.iter().map(DynamicImage::to_rgb8).collect()),
            Self::Tensor(_) | Self::Latent(_) => Err(not_images()),
        }
    }

    /// The tensor, of pictures or of latents.
    ///
    /// # Errors
    /// [`Error::Argument`] if the output type was [`OutputType::Image`].
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) | Self::Latent(tensor) => Ok(tensor),
            Self::Image(_) => Err(Error::Argument("the output type was pil: ask for pt or latent".into())),
        }
    }
}

fn not_images() -> Error {
    Error::Argument("the output type was not pil: the pictures are a tensor".into())
}

/// Turns pictures into the VAE's input, and its output into pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaeImageProcessor {
    /// What the sides of a picture are made multiples of, in pixels; 8.
    pub vae_scale_factor: i64,
    /// A tensor of this many channels is taken for latents and left as it is; 4.
    pub vae_latent_channels: i64,
    /// Whether pictures are resized, to what is asked for or to the next smaller multiples of `vae_scale_factor`; yes.
    pub do_resize: bool,
    /// What weighs the pixels when pictures are resized; [`Resample::Lanczos`].
    pub resample: Resample,
    /// Whether the VAE's values lie in [-1, 1] rather than in [0, 1]; yes.
    pub do_normalize: bool,
    /// Whether values become 0 or 1, as of a mask: 1 from 0.5 on; no.
    pub do_binarize: bool,
    /// Whether pictures are brought to colour, without transparency; no.
    pub do_convert_rgb: bool,
    /// Whether pictures are brought to grey, unless they are brought to colour; no.
    pub do_convert_grayscale: bool,
}

impl Default for VaeImageProcessor {
    fn default() -> Self {
        Self::new(8)
    }
}

impl VaeImageProcessor {
    /// For a VAE that shrinks pictures by `vae_scale_factor` along each side.
    #[must_use]
    pub fn new(vae_scale_factor: i64) -> Self {
        Self {
            vae_scale_factor,
            vae_latent_channels: 4,
            do_resize: true,
            resample: Resample::Lanczos,
            do_normalize: true,
            do_binarize: false,
            do_convert_rgb: false,
            do_convert_grayscale: false,
        }
    }

    /// For the masks of inpainting: grey, and each value 0 or 1.
    #[must_use]
    pub fn for_masks(vae_scale_factor: i64) -> Self {
        Self { do_normalize: false, do_binarize: true, do_convert_grayscale: true, ..Self::new(vae_scale_factor) }
    }

    /// Turns what the VAE decoded into `output_type`; latents come back as they are.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]`; for pictures, 1 or 3 channels.
    ///
    /// # Errors
    /// [`Error::Shape`] if it cannot be pictures.
    pub fn postprocess(&self, image: &Tensor, output_type: OutputType) -> Result<Images> {
        let image = match output_type {
            OutputType::Latent => return Ok(Images::Latent(image.shallow_clone())),
            _ if self.do_normalize => Self::denormalize(image)?,
            _ => image.shallow_clone(),
        };
        match output_type {
            OutputType::Image => Ok(Images::Image(to_images(&image)?)),
            _ => Ok(Images::Tensor(image)),
        }
    }

    /// As [`VaeImageProcessor::postprocess`], with the pictures that `kept` marks left at the values they have:
    /// `do_denormalize` the other way round.
    pub(crate) fn postprocess_but(&self, image: &Tensor, kept: &[bool], output_type: OutputType) -> Result<Images> {
        if output_type == OutputType::Latent || !self.do_normalize {
            return self.postprocess(image, output_type);
        }
        let one = |(index, kept): (usize, &bool)| -> Result<Tensor> {
            let picture = image.f_select(0, index as i64)?;
            if *kept { Ok(picture) } else { Self::denormalize(&picture) }
        };
        let pictures = kept.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        let image = Tensor::f_stack(&pictures, 0)?;
        match output_type {
            OutputType::Image => Ok(Images::Image(to_images(&image)?)),
            _ => Ok(Images::Tensor(image)),
        }
    }

    /// From [0, 1] to [-1, 1].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the result has no room.
    pub fn normalize(images: &Tensor) -> Result<Tensor> {
        images.times(2.0)?.minus(1.0)
    }

    /// From [-1, 1] to [0, 1]; what lies outside is cut.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the result has no room.
    pub fn denormalize(images: &Tensor) -> Result<Tensor> {
        images.times(0.5)?.plus(0.5)?.clamped(0.0, 1.0)
    }
}

/// `[batch, channels, height, width]` with values in [0, 1] as pictures; halves round to the even neighbour.
fn to_images(image: &Tensor) -> Result<Vec<DynamicImage>> {
    let (batch, channels, height, width) = image.size4()?;
    let refused = || Error::Shape(format!("{:?} is no batch of pictures of 1 or 3 channels", image.size()));
    let (columns, rows) = (u32::try_from(width).map_err(|_| refused())?, u32::try_from(height).map_err(|_| refused())?);
    let pixels = image.f_to_device(Device::Cpu)?.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::Float)?;
    let pixels = pixels.times(255.0)?.f_round()?.f_to_kind(Kind::Uint8)?.f_contiguous()?;
    let make = |index: i64| {
        let pixels = pixels.f_select(0, index)?;
        let mut bytes = vec![0u8; pixels.numel()];
        pixels.f_copy_data(&mut bytes, pixels.numel())?;
        let made = match channels {
            1 => GrayImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
            3 => RgbImage::from_raw(columns, rows, bytes).map(DynamicImage::from),
            _ => None,
        };
        made.ok_or_else(refused)
    };
    (0..batch).map(make).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_types_have_diffusers_names() {
        for (name, output_type) in
            [("pil", OutputType::Image), ("pt", OutputType::Tensor), ("latent", OutputType::Latent)]
        {
            assert_eq!(name.parse::<OutputType>().unwrap(), output_type);
        }
        let error = "np".parse::<OutputType>().unwrap_err().to_string();
        assert_eq!(error, "unknown output type `np`: use pil, pt or latent");
    }

    #[test]
    fn pictures_that_do_not_fit_are_refused() {
        let processor = VaeImageProcessor::new(8);
        let rgb = |width, height| DynamicImage::from(RgbImage::new(width, height));
        assert!(matches!(processor.preprocess(&[]), Err(Error::Argument(_))));
        let error = processor.preprocess(&[rgb(16, 7)]).unwrap_err();
        assert_eq!(error.to_string(), "a picture of 16x7 cannot become one of 16x0: there have to be pixels");
        let grey = DynamicImage::from(GrayImage::new(16, 16));
        assert!(matches!(processor.preprocess(&[rgb(16, 16), grey]), Err(Error::Argument(_))));
        let fixed = VaeImageProcessor { do_resize: false, ..processor };
        assert!(matches!(fixed.preprocess(&[rgb(16, 16), rgb(16, 8)]), Err(Error::Argument(_))));
        let deep = DynamicImage::new_rgb16(16, 16);
        assert!(matches!(processor.preprocess(&[deep]), Err(Error::Unsupported(_))));
        let two_channels = Tensor::zeros([1, 2, 8, 8], (Kind::Float, Device::Cpu));
        assert!(matches!(processor.postprocess(&two_channels, OutputType::Image), Err(Error::Shape(_))));
    }

    #[test]
    fn a_size_that_is_no_multiple_is_cut_to_one_and_later_pictures_follow_the_first() {
        let processor = VaeImageProcessor::new(8);
        let rgb = |width, height| DynamicImage::from(RgbImage::new(width, height));
        assert_eq!(processor.preprocess(&[rgb(21, 17), rgb(40, 8)]).unwrap().size(), [2, 3, 16, 16]);
        let fixed = VaeImageProcessor { do_resize: false, ..processor };
        assert_eq!(fixed.preprocess(&[rgb(21, 17)]).unwrap().size(), [1, 3, 17, 21]);
    }

    #[test]
    fn pictures_come_back_from_the_tensor_they_became() {
        let picture = RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 16, y as u8 * 30, (x * y) as u8]));
        let processor = VaeImageProcessor::default();
        let tensor = processor.preprocess(&[picture.clone().into()]).unwrap();
        assert_eq!(processor.postprocess(&tensor, OutputType::Image).unwrap().to_rgb().unwrap(), [picture]);
        let latent = processor.postprocess(&tensor, OutputType::Latent).unwrap();
        assert!(latent.to_rgb().is_err());
        assert_eq!(latent.into_tensor().unwrap().data_ptr(), tensor.data_ptr());
    }
}
