//! From pictures to the VAE's input.

use super::{CropRegion, ImageInput, ResizeMode, VaeImageProcessor};
use crate::error::{Error, Result};
use crate::torch::NumberExt;
use crate::utils::pil::{Raster, to_grey, to_rgb};
use image::DynamicImage;
use tch::{Kind, Tensor};

/// What [`VaeImageProcessor::preprocess_with`] may be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreprocessOptions {
    /// The height to bring pictures to, in pixels; the first picture's own by default.
    pub height: Option<i64>,
    /// The width to bring pictures to, in pixels; the first picture's own by default.
    pub width: Option<i64>,
    /// How they are brought to another shape. Tensors are always stretched.
    pub resize_mode: ResizeMode,
    /// The part of each picture that is taken; all of it by default. Tensors are taken whole.
    pub crops_coords: Option<CropRegion>,
}

impl VaeImageProcessor {
    /// Turns pictures into the VAE's input, with [`PreprocessOptions`] left at their defaults.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` comes out, float32 on the CPU.
    ///
    /// # Errors
    /// As [`VaeImageProcessor::preprocess_with`].
    pub fn preprocess(&self, images: &[DynamicImage]) -> Result<Tensor> {
        self.of_images(images, &PreprocessOptions::default())
    }

    /// Turns pictures, or a tensor of pictures, into the VAE's input. Tensors of latents come back as they are.
    ///
    /// A tensor with values below 0 is taken to be normalised already.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` comes out; of pictures, float32 on the CPU.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are none, if pictures differ in their channels, or in size where they are not resized,
    /// or if a tensor is to be resized otherwise than by stretching; [`Error::Unsupported`] for pictures of other than 8
    /// bits a channel; [`Error::Shape`] for a tensor that is no picture.
    pub fn preprocess_with(&self, image: &ImageInput, options: &PreprocessOptions) -> Result<Tensor> {
        match image {
            ImageInput::Images(images) => self.of_images(images, options),
            ImageInput::Tensor(tensor) => self.of_tensor(tensor, options),
        }
    }

    /// The height and width that pictures are brought to: those asked for, or else the picture's, each cut to a multiple of
    /// `vae_scale_factor`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no picture; [`Error::Shape`] for a tensor that is none.
    pub fn get_default_height_width(
        &self,
        image: &ImageInput,
        height: Option<i64>,
        width: Option<i64>,
    ) -> Result<(i64, i64)> {
        let (own_height, own_width) = image.size()?;
        Ok(self.multiples(height.unwrap_or(own_height), width.unwrap_or(own_width)))
    }

    fn multiples(&self, height: i64, width: i64) -> (i64, i64) {
        let factor = self.vae_scale_factor.max(1);
        (height - height % factor, width - width % factor)
    }

    fn of_images(&self, images: &[DynamicImage], options: &PreprocessOptions) -> Result<Tensor> {
        let mut rasters = images.iter().map(Raster::of).collect::<Result<Vec<_>>>()?;
        if let Some(region) = options.crops_coords {
            rasters = rasters.iter().map(|image| image.crop(region.corners())).collect::<Result<_>>()?;
        }
        let Some(first) = rasters.first() else {
            return Err(Error::Argument("no picture was given".into()));
        };
        if self.do_resize {
            let (height, width) =
                (options.height.unwrap_or(first.height as i64), options.width.unwrap_or(first.width as i64));
            let (height, width) = self.multiples(height, width);
            let resized = rasters.iter().map(|image| self.resize_raster(image, height, width, options.resize_mode));
            rasters = resized.collect::<Result<_>>()?;
        }
        if self.do_convert_rgb {
            rasters = rasters.iter().map(to_rgb).collect();
        } else if self.do_convert_grayscale {
            rasters = rasters.iter().map(to_grey).collect();
        }
        self.finish(&to_tensor(&rasters)?, self.do_normalize)
    }

    fn of_tensor(&self, tensor: &Tensor, options: &PreprocessOptions) -> Result<Tensor> {
        let tensor = match tensor.dim() {
            4 => tensor.shallow_clone(),
            // As in diffusers: what is to be grey is a batch of pictures without a dimension for channels.
            3 if self.do_convert_grayscale => tensor.f_unsqueeze(1)?,
            3 => tensor.f_unsqueeze(0)?,
            2 if self.do_convert_grayscale => tensor.f_unsqueeze(0)?.f_unsqueeze(0)?,
            _ => return Err(Error::Shape(format!("a tensor of shape {:?} is no picture", tensor.size()))),
        };
        let (_, channels, own_height, own_width) = tensor.size4()?;
        if tensor.numel() == 0 {
            return Err(Error::Argument("no picture was given".into()));
        }
        if channels == self.vae_latent_channels {
            return Ok(tensor);
        }
        let normalize = self.do_normalize && tensor.f_min()?.f_double_value(&[])? >= 0.0;
        if !self.do_resize {
            return self.finish(&tensor, normalize);
        }
        if options.resize_mode != ResizeMode::Default {
            return Err(Error::Argument("a tensor can only be stretched: give pictures to fill or to crop".into()));
        }
        let (height, width) = self.multiples(options.height.unwrap_or(own_height), options.width.unwrap_or(own_width));
        self.finish(&interpolate(&tensor, height, width)?, normalize)
    }

    /// Normalises and binarises what is in [0, 1].
    fn finish(&self, image: &Tensor, normalize: bool) -> Result<Tensor> {
        let image = if normalize { Self::normalize(image)? } else { image.shallow_clone() };
        if self.do_binarize { Ok(image.is_at_least(0.5)?.f_to_kind(image.f_kind()?)?) } else { Ok(image) }
    }
}

/// `image` in another size, each pixel the nearest one of the picture before.
pub(crate) fn interpolate(image: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    Ok(image.f_upsample_nearest2d([height, width], None::<f64>, None::<f64>)?)
}

/// Pictures of one size and of the same channels as `[batch, channels, height, width]`, with values in [0, 1].
fn to_tensor(images: &[Raster]) -> Result<Tensor> {
    let Some(first) = images.first() else {
        return Err(Error::Argument("no picture was given".into()));
    };
    let shape = |image: &Raster| (image.width, image.height, image.channels);
    if images.iter().any(|image| shape(image) != shape(first)) {
        return Err(Error::Argument("the pictures differ in size or colour".into()));
    }
    let bytes: Vec<u8> = images.iter().flat_map(|image| &image.bytes).copied().collect();
    let (batch, channels) = (images.len() as i64, first.channels as i64);
    let (height, width) = (first.height as i64, first.width as i64);
    let pixels = Tensor::f_from_slice(&bytes)?;
    // Colour stays in its order in memory, as in diffusers: convolutions may round otherwise for channels-first.
    let pixels = match channels {
        1 => pixels.f_view([batch, 1, height, width])?,
        _ => pixels.f_view([batch, height, width, channels])?.f_permute([0, 3, 1, 2])?,
    };
    pixels.f_to_kind(Kind::Float)?.over(255.0)
}
