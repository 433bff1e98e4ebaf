//! Pictures as latents.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::image_processor::ImageInput;
use crate::torch::{Generator, NumberExt};
use tch::Tensor;

impl StableDiffusionPipeline {
    /// Latents of pictures with values in [-1, 1], drawn from the distributions that the VAE gives, and scaled as the UNet
    /// knows them: one generator draws for all; of several, each for its own picture.
    pub(super) fn encode_image(&self, image: &Tensor, generators: &mut [Generator]) -> Result<Tensor> {
        let encode = |image: &Tensor, generators: &mut [Generator]| -> Result<Tensor> {
            self.vae.encode(image).map_err(|error| error.within("vae"))?.sample(generators)
        };
        let latents = match generators {
            [] | [_] => encode(image, generators)?,
            several => {
                let pictures = image.size().first().copied().unwrap_or(0);
                if pictures > several.len() as i64 {
                    let text = format!("{} generators were given for {pictures} pictures", several.len());
                    return Err(Error::Argument(text));
                }
                let each = (0..pictures).zip(several);
                let items = each.map(|(i, own)| encode(&image.f_narrow(0, i, 1)?, std::slice::from_mut(own)));
                Tensor::f_cat(&items.collect::<Result<Vec<_>>>()?, 0)?
            }
        };
        latents.times(self.vae.config().scaling_factor)
    }

    /// Whether a tensor is latents, and not pictures: by its channels, as in diffusers.
    pub(super) fn is_latent(&self, image: &ImageInput) -> bool {
        image.tensor_channels() == Some(self.image_processor.vae_latent_channels)
    }

    /// Holds pictures to what the VAE can encode.
    // Differs from diffusers: there, four channels are taken for latents, and other wrong numbers fail in the VAE.
    pub(super) fn check_channels(&self, image: &ImageInput) -> Result<()> {
        let ImageInput::Images(images) = image else { return Ok(()) };
        let expected = self.vae.config().in_channels;
        let foreign = images.iter().find(|image| i64::from(image.color().channel_count()) != expected);
        match foreign {
            Some(image) => Err(Error::Argument(format!(
                "a picture of colour type {:?} has not the {expected} channels that the VAE encodes: convert it, as \
                 `VaeImageProcessor::convert_to_rgb` does",
                image.color()
            ))),
            None => Ok(()),
        }
    }
}

/// Holds the number of what is given once for each picture, or once for several, to the number of pictures drawn.
pub(super) fn check_count(name: &str, given: i64, pictures: i64) -> Result<()> {
    if given > 0 && pictures % given == 0 {
        return Ok(());
    }
    Err(Error::Argument(format!("{given} of `{name}` cannot serve {pictures} pictures: give one, or one for each")))
}
