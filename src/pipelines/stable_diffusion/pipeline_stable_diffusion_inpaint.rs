//! `StableDiffusionInpaintPipeline`: parts of a picture drawn anew.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` at 0.42.1. UNets of 9 channels see the
//! mask and what it leaves (Rombach et al. 2022, arXiv:2112.10752, section 4.5); with those of 4 the picture takes its place
//! again after each step (Lugmayr et al. 2022, "RePaint", arXiv:2201.09865, without resampling).

use super::StableDiffusionPipeline;
use super::arguments::Arguments;
use super::call::StableDiffusionCall;
use super::conditioning::Conditioning;
use super::loading::{FromComponents, StableDiffusionLoader};
use super::task::{Setting, Start, TakesSize, Task};
use crate::error::{Error, Result};
use crate::image_processor::{
    CropRegion, ImageInput, Images, OutputType, PreprocessOptions, ResizeMode, VaeImageProcessor, interpolate,
};
use crate::pipelines::Prompt;
use crate::pipelines::image_latents::{check_channels, check_count, is_latent};
use crate::pipelines::shared_methods::is_another_pipeline;
use crate::pipelines::strength::check_strength;
use crate::torch::{Generator, NumberExt, randn_tensor};
use image::DynamicImage;
use std::path::Path;
use tch::{Kind, Tensor};

/// Inpainting with Stable Diffusion 1.x and 2.x, by UNets made for it or by any other.
///
/// It is a [`StableDiffusionPipeline`] with another call: components and techniques are reached as there.
///
/// # Examples
/// ```
/// use tch_diffusers::{StableDiffusionInpaintPipeline, utils::assets::bundled_model};
/// let blue = image::RgbImage::from_pixel(128, 128, image::Rgb([0, 0, 255]));
/// let mask = image::GrayImage::from_fn(128, 128, |x, _| image::Luma([if x < 64 { 0 } else { 255 }]));
/// let mut pipe = StableDiffusionInpaintPipeline::from_pretrained(bundled_model()?).load()?;
/// let call = pipe.call("a red circle on a blue background", blue, mask).strength(0.75);
/// let output = call.num_inference_steps(4).seed(0).run()?;
/// assert_eq!(output.images.to_rgb()?[0].dimensions(), (128, 128));
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct StableDiffusionInpaintPipeline(StableDiffusionPipeline);

impl StableDiffusionInpaintPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "StableDiffusionInpaintPipeline";

    /// Reads the pipeline that diffusers wrote to `folder`, whichever of Stable Diffusion's it was.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> StableDiffusionLoader<Self> {
        StableDiffusionLoader::new(folder.as_ref())
    }

    /// The pipeline with the components of another one and with what is switched on there. They move: no weight is copied,
    /// and [`StableDiffusionPipeline::from_pipe`] leads back.
    #[must_use]
    pub fn from_pipe(pipe: impl Into<StableDiffusionPipeline>) -> Self {
        Self(pipe.into())
    }

    /// A second pipeline over the same weights, for another thread: see [`StableDiffusionPipeline::share`].
    ///
    /// # Errors
    /// As there.
    pub fn share(&self) -> Result<Self> {
        self.0.share().map(Self)
    }

    /// Prepares pictures of `prompt`, a text or a list of texts, that are `image` where `mask_image` is black and new where
    /// it is white. Both are stretched to the size that is drawn.
    pub fn call(
        &mut self,
        prompt: impl Into<Prompt>,
        image: impl Into<ImageInput>,
        mask_image: impl Into<ImageInput>,
    ) -> StableDiffusionInpaintCall<'_> {
        let task = Inpainting::new(image.into(), mask_image.into());
        StableDiffusionCall::new(&mut self.0, prompt.into(), task)
    }

    /// As [`StableDiffusionInpaintPipeline::call`], with embeddings of the prompts in place of texts.
    ///
    /// # Shapes
    /// `prompt_embeds` is `[batch, tokens, hidden_size]`. With guidance, `negative_prompt_embeds` is needed as well.
    pub fn call_embeds(
        &mut self,
        prompt_embeds: Tensor,
        image: impl Into<ImageInput>,
        mask_image: impl Into<ImageInput>,
    ) -> StableDiffusionInpaintCall<'_> {
        let task = Inpainting::new(image.into(), mask_image.into());
        StableDiffusionCall::of_embeds(&mut self.0, prompt_embeds, task)
    }
}

is_another_pipeline!(StableDiffusionInpaintPipeline, StableDiffusionPipeline);

impl FromComponents for StableDiffusionInpaintPipeline {
    const OUTDATED_OPTION: (&'static str, bool) = ("skip_prk_steps", false);
}

/// A call of [`StableDiffusionInpaintPipeline`] under way.
pub type StableDiffusionInpaintCall<'a> = StableDiffusionCall<'a, Inpainting>;

/// Drawing parts of a picture.
#[derive(Debug)]
pub struct Inpainting {
    image: ImageInput,
    mask_image: ImageInput,
    masked_image_latents: Option<Tensor>,
    padding_mask_crop: Option<i64>,
    strength: f64,
}

impl StableDiffusionInpaintCall<'_> {
    /// How much of the part is drawn anew, 0 to 1: of 1, the default, nothing is left.
    pub fn strength(mut self, strength: f64) -> Self {
        self.task.strength = strength;
        self
    }

    /// The latents of what the mask leaves, in place of those that the VAE gives; pictures, by their channels, are encoded.
    ///
    /// # Shapes
    /// `[batch, 4, height / 8, width / 8]`, or `[batch, 3, height, width]`.
    pub fn masked_image_latents(mut self, latents: Tensor) -> Self {
        self.task.masked_image_latents = Some(latents);
        self
    }

    /// Draws the part around the mask, with this many pixels around, at the full size, and puts it back into the picture:
    /// for small masks in large pictures. Needs one picture, one mask of its size, and pictures as the output.
    pub fn padding_mask_crop(mut self, pixels: i64) -> Self {
        self.task.padding_mask_crop = Some(pixels);
        self
    }
}

impl Inpainting {
    fn new(image: ImageInput, mask_image: ImageInput) -> Self {
        Self { image, mask_image, masked_image_latents: None, padding_mask_crop: None, strength: 1.0 }
    }

    fn starts_from_noise(&self) -> bool {
        self.strength == 1.0
    }

    /// The part that is drawn, of the picture and of the mask.
    fn crop_region(&self, (height, width): (i64, i64)) -> Result<Option<CropRegion>> {
        match (self.padding_mask_crop, &self.mask_image) {
            (Some(pad), ImageInput::Images(masks)) if !masks.is_empty() => {
                VaeImageProcessor::get_crop_region(&masks[0], width, height, pad).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn check_padding(&self, arguments: &Arguments<'_>) -> Result<()> {
        if let Some(pixels) = self.padding_mask_crop.filter(|pixels| *pixels < 0) {
            return Err(Error::Argument(format!("`padding_mask_crop` has to be 0 or more, but is {pixels}")));
        }
        let (ImageInput::Images(images), ImageInput::Images(masks)) = (&self.image, &self.mask_image) else {
            return Err(Error::Argument("`padding_mask_crop` needs a picture and a mask, not tensors".into()));
        };
        let ([image], [mask]) = (images.as_slice(), masks.as_slice()) else {
            return Err(Error::Argument("`padding_mask_crop` needs one picture and one mask".into()));
        };
        if (image.width(), image.height()) != (mask.width(), mask.height()) {
            return Err(Error::Argument(format!(
                "`padding_mask_crop` needs a mask of the picture's size, {}x{}, but it is {}x{}",
                image.width(),
                image.height(),
                mask.width(),
                mask.height()
            )));
        }
        if arguments.output_type != OutputType::Image {
            return Err(Error::Argument("`padding_mask_crop` needs the output type pil".into()));
        }
        let size = (arguments.height.unwrap_or(8), arguments.width.unwrap_or(8));
        self.crop_region(size).map(|_| ())
    }
}

impl Task for Inpainting {
    const ENCODES_IMAGE: bool = true;

    fn size(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<(i64, i64)> {
        arguments.size(pipe)
    }

    fn check(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<()> {
        check_strength(self.strength)?;
        let (channels, latent_channels) = (pipe.unet.config().in_channels, pipe.vae.config().latent_channels);
        if channels != latent_channels && channels != 2 * latent_channels + 1 {
            return Err(Error::Unsupported(format!(
                "inpainting needs a UNet of {latent_channels} or {} channels; this one has {channels}",
                2 * latent_channels + 1
            )));
        }
        let (images, masks) = (self.image.count(), self.mask_image.count());
        check_count("image", images, arguments.pictures())?;
        check_count("mask_image", masks, arguments.pictures())?;
        if images != masks && images != 1 && masks != 1 {
            return Err(Error::Argument(format!("there are {masks} masks for {images} pictures")));
        }
        if is_latent(&pipe.image_processor, &self.image) && self.masked_image_latents.is_none() {
            let text = "a picture that is given as latents cannot be masked: give `masked_image_latents` as well";
            return Err(Error::Argument(text.into()));
        }
        match self.padding_mask_crop {
            Some(_) => self.check_padding(arguments),
            None => check_channels(&pipe.vae, &self.image),
        }
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }

    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Start> {
        let Setting { pipe, height, width, pictures, .. } = *setting;
        let crops_coords = self.crop_region((height, width))?;
        let resize_mode = if crops_coords.is_some() { ResizeMode::Fill } else { ResizeMode::Default };
        let options = PreprocessOptions { height: Some(height), width: Some(width), resize_mode, crops_coords };
        let init_image = pipe.image_processor.preprocess_with(&self.image, &options)?.f_to_kind(Kind::Float)?;
        let sees_mask = pipe.unet.config().in_channels != pipe.vae.config().latent_channels;

        let needs_latents = !sees_mask || (setting.latents.is_none() && !self.starts_from_noise());
        let image_latents = needs_latents.then(|| self.image_latents(setting, &init_image, generators)).transpose()?;
        let noise = setting.noise(pipe.vae.config().latent_channels, generators)?;
        let latents = match &image_latents {
            Some(image_latents) if setting.latents.is_none() && !self.starts_from_noise() => {
                setting.add_noise(image_latents, &noise)?
            }
            _ => noise.times(pipe.scheduler.init_noise_sigma())?,
        };

        let masks = VaeImageProcessor::for_masks(pipe.image_processor.vae_scale_factor);
        let mask_condition = masks.preprocess_with(&self.mask_image, &options)?;
        if mask_condition.size4()?.1 != 1 {
            return Err(Error::Shape(format!("a mask of shape {:?} has more than 1 channel", mask_condition.size())));
        }
        let factor = pipe.vae_scale_factor();
        let mask = interpolate(&mask_condition, height / factor, width / factor)?;
        let mask = repeat(&mask.f_to_device(setting.device)?.f_to_kind(setting.kind)?, pictures)?;
        let conditioning = match image_latents {
            Some(image_latents) if !sees_mask => {
                self.draw_unseen(setting, generators)?;
                Conditioning::Blend { mask, image_latents, noise }
            }
            _ => {
                let masked = self.masked_image_latents(setting, &init_image, &mask_condition, generators)?;
                Conditioning::Channels { mask, masked_image_latents: repeat(&masked, pictures)? }
            }
        };
        Ok(Start { latents, conditioning })
    }

    fn finish(&self, pipe: &StableDiffusionPipeline, size: (i64, i64), images: Images) -> Result<Images> {
        let region = self.crop_region(size)?;
        match (region, &self.image, &self.mask_image, images) {
            (Some(_), ImageInput::Images(image), ImageInput::Images(mask), Images::Image(drawn)) => {
                let put_back =
                    |drawn: &DynamicImage| pipe.image_processor.apply_overlay(&mask[0], &image[0], drawn, region);
                Ok(Images::Image(drawn.iter().map(put_back).collect::<Result<_>>()?))
            }
            (.., images) => Ok(images),
        }
    }
}

impl TakesSize for Inpainting {}

impl Inpainting {
    /// The latents of the whole picture, one for each that is drawn.
    fn image_latents(&self, setting: &Setting<'_>, image: &Tensor, generators: &mut [Generator]) -> Result<Tensor> {
        let image = image.f_to_device(setting.device)?.f_to_kind(setting.kind)?;
        let latents = match is_latent(&setting.pipe.image_processor, &self.image) {
            true => image,
            false => setting.encode(&image, generators)?,
        };
        repeat(&latents, setting.pictures)
    }

    /// The latents of what the mask leaves.
    fn masked_image_latents(
        &self,
        setting: &Setting<'_>,
        image: &Tensor,
        mask: &Tensor,
        generators: &mut [Generator],
    ) -> Result<Tensor> {
        let masked = match &self.masked_image_latents {
            Some(given) => given.shallow_clone(),
            None => image.f_mul(&mask.f_to_device(image.device())?.is_below(0.5)?)?,
        };
        let masked = masked.f_to_device(setting.device)?.f_to_kind(setting.kind)?;
        match masked.size4()?.1 == setting.pipe.image_processor.vae_latent_channels {
            true => Ok(masked),
            false => setting.encode(&masked, generators),
        }
    }

    /// Draws the noise that diffusers draws here, for latents of the masked picture that a UNet of 4 channels does not see.
    // Differs from diffusers: there, the masked picture is encoded as well, to no end.
    fn draw_unseen(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<()> {
        let channels = setting.pipe.image_processor.vae_latent_channels;
        let given = self.masked_image_latents.as_ref().map(Tensor::size);
        if given.as_ref().is_some_and(|size| size.get(1) == Some(&channels)) {
            return Ok(());
        }
        let pictures = match given {
            Some(size) => size.first().copied().unwrap_or(1),
            None => self.image.count().max(self.mask_image.count()),
        };
        let factor = setting.pipe.vae_scale_factor();
        let shape = [setting.pipe.vae.config().latent_channels, setting.height / factor, setting.width / factor];
        let own = if generators.len() > 1 { generators.len().min(pictures as usize) } else { generators.len() };
        let [channels, height, width] = shape;
        let size = [pictures, channels, height, width];
        randn_tensor(&size, &mut generators[..own], setting.kind, setting.device).map(|_| ())
    }
}

/// The batch, several times over, until there is one for each picture.
fn repeat(batch: &Tensor, pictures: i64) -> Result<Tensor> {
    let given = batch.size().first().copied().unwrap_or(1).max(1);
    Ok(batch.f_repeat([(pictures / given).max(1), 1, 1, 1])?)
}
