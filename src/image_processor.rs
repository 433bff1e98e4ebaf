//! Between pictures and the VAE's tensors.
//!
//! Mirrors `VaeImageProcessor` of `diffusers/image_processor.py` (0.42.1).

use crate::error::{Error, Result};
use image::{ColorType, DynamicImage, GrayImage, RgbImage};
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
    /// What the sides of a picture are multiples of, in pixels; 8.
    pub vae_scale_factor: i64,
    /// Whether the VAE's values lie in [-1, 1] rather than in [0, 1]; yes.
    pub do_normalize: bool,
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
        Self { vae_scale_factor, do_normalize: true }
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

    /// Turns pictures of one size, in colour or grey, into the VAE's input.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` comes out, float32 on the CPU.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are none, or their sizes or colours differ. [`Error::Unsupported`] if a side is no
    /// multiple of `vae_scale_factor`, or the pictures are neither 8-bit colour nor 8-bit grey.
    pub fn preprocess(&self, images: &[DynamicImage]) -> Result<Tensor> {
        let Some(first) = images.first() else {
            return Err(Error::Argument("no picture was given".into()));
        };
        let (width, height) = (i64::from(first.width()), i64::from(first.height()));
        if width % self.vae_scale_factor != 0 || height % self.vae_scale_factor != 0 {
            return Err(Error::Unsupported(format!(
                "a picture of {width}x{height}: its sides must be multiples of {}",
                self.vae_scale_factor
            )));
        }
        let channels = channels(first)?;
        let mut bytes = Vec::with_capacity(images.len() * first.as_bytes().len());
        for image in images {
            let fits = (image.width(), image.height(), image.color()) == (first.width(), first.height(), first.color());
            if !fits {
                return Err(Error::Argument("the pictures differ in size or colour".into()));
            }
            bytes.extend_from_slice(image.as_bytes());
        }
        let (batch, pixels) = (images.len() as i64, Tensor::f_from_slice(&bytes)?);
        // Colour stays in its order in memory, as in diffusers: convolutions may round otherwise for channels-first.
        let pixels = match channels {
            1 => pixels.f_view([batch, 1, height, width])?,
            _ => pixels.f_view([batch, height, width, channels])?.f_permute([0, 3, 1, 2])?,
        };
        let image = pixels.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?;
        if self.do_normalize { Self::normalize(&image) } else { Ok(image) }
    }

    /// From [0, 1] to [-1, 1].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the result has no room.
    pub fn normalize(images: &Tensor) -> Result<Tensor> {
        Ok(images.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
    }

    /// From [-1, 1] to [0, 1]; what lies outside is cut.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the result has no room.
    pub fn denormalize(images: &Tensor) -> Result<Tensor> {
        Ok(images.f_mul_scalar(0.5)?.f_add_scalar(0.5)?.f_clamp(0.0, 1.0)?)
    }
}

/// The channels of a picture that the VAE can take.
fn channels(image: &DynamicImage) -> Result<i64> {
    match image.color() {
        ColorType::L8 => Ok(1),
        ColorType::Rgb8 => Ok(3),
        other => Err(Error::Unsupported(format!("a picture of colour type {other:?}: convert it to Rgb8 or L8"))),
    }
}

/// `[batch, channels, height, width]` with values in [0, 1] as pictures; halves round to the even neighbour.
fn to_images(image: &Tensor) -> Result<Vec<DynamicImage>> {
    let (batch, channels, height, width) = image.size4()?;
    let refused = || Error::Shape(format!("{:?} is no batch of pictures of 1 or 3 channels", image.size()));
    let (columns, rows) = (u32::try_from(width).map_err(|_| refused())?, u32::try_from(height).map_err(|_| refused())?);
    let pixels = image.f_to_device(Device::Cpu)?.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::Float)?;
    let pixels = pixels.f_mul_scalar(255.0)?.f_round()?.f_to_kind(Kind::Uint8)?.f_contiguous()?;
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
        let error = processor.preprocess(&[rgb(16, 20)]).unwrap_err();
        assert_eq!(error.to_string(), "a picture of 16x20: its sides must be multiples of 8");
        let grey = DynamicImage::from(GrayImage::new(16, 16));
        assert!(matches!(processor.preprocess(&[rgb(16, 16), grey]), Err(Error::Argument(_))));
        assert!(matches!(processor.preprocess(&[rgb(16, 16), rgb(16, 8)]), Err(Error::Argument(_))));
        let transparent = DynamicImage::new_rgba8(16, 16);
        assert!(matches!(processor.preprocess(&[transparent]), Err(Error::Unsupported(_))));
        let two_channels = Tensor::zeros([1, 2, 8, 8], (Kind::Float, Device::Cpu));
        assert!(matches!(processor.postprocess(&two_channels, OutputType::Image), Err(Error::Shape(_))));
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
