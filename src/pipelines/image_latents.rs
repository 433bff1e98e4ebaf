//! Pictures as latents, for pipelines that start from one.

use crate::error::{Error, Result};
use crate::image_processor::{ImageInput, VaeImageProcessor};
use crate::models::autoencoders::AutoencoderKL;
use crate::torch::Generator;
use tch::Tensor;

/// Latents of pictures with values in [-1, 1], drawn from the distributions that the VAE gives, and not yet scaled: one
/// generator draws for all; of several, each for its own picture.
pub(super) fn sample_latents(vae: &AutoencoderKL, image: &Tensor, generators: &mut [Generator]) -> Result<Tensor> {
    let encode = |image: &Tensor, generators: &mut [Generator]| -> Result<Tensor> {
        vae.encode(image).map_err(|error| error.within("vae"))?.sample(generators)
    };
    let several = match generators {
        [] | [_] => return encode(image, generators),
        several => several,
    };
    let pictures = image.size().first().copied().unwrap_or(0);
    if pictures > several.len() as i64 {
        return Err(Error::Argument(format!("{} generators were given for {pictures} pictures", several.len())));
    }
    let each = (0..pictures).zip(several);
    let items = each.map(|(i, own)| encode(&image.f_narrow(0, i, 1)?, std::slice::from_mut(own)));
    Ok(Tensor::f_cat(&items.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Whether a tensor is latents, and not pictures: by its channels, as in diffusers.
pub(super) fn is_latent(processor: &VaeImageProcessor, image: &ImageInput) -> bool {
    image.tensor_channels() == Some(processor.vae_latent_channels)
}

/// Height and width in pixels of what is drawn from `image`: its own, cut to what the VAE can halve.
pub(super) fn size_of(processor: &VaeImageProcessor, image: &ImageInput, factor: i64) -> Result<(i64, i64)> {
    if is_latent(processor, image) {
        let (height, width) = image.size()?;
        return Ok((height * factor, width * factor));
    }
    processor.get_default_height_width(image, None, None)
}

/// Holds pictures to what the VAE can encode.
// Differs from diffusers: there, four channels are taken for latents, and other wrong numbers fail in the VAE.
pub(super) fn check_channels(vae: &AutoencoderKL, image: &ImageInput) -> Result<()> {
    let ImageInput::Images(images) = image else { return Ok(()) };
    let expected = vae.config().in_channels;
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

/// Holds the number of what is given once for each picture, or once for several, to the number of pictures drawn.
pub(super) fn check_count(name: &str, given: i64, pictures: i64) -> Result<()> {
    if given > 0 && pictures % given == 0 {
        return Ok(());
    }
    Err(Error::Argument(format!("{given} of `{name}` cannot serve {pictures} pictures: give one, or one for each")))
}

/// The batch, several times over, until there is one for each picture.
pub(super) fn repeat(batch: &Tensor, pictures: i64) -> Result<Tensor> {
    let given = batch.size().first().copied().unwrap_or(1).max(1);
    let copies = vec![batch; (pictures / given).max(1) as usize];
    Ok(Tensor::f_cat(&copies, 0)?)
}
