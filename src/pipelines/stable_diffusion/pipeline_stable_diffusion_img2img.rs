//! `StableDiffusionImg2ImgPipeline`: pictures from a picture and a prompt.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py` at 0.42.1. Meng et al. 2021, "SDEdit"
//! (arXiv:2108.01073).

use super::StableDiffusionPipeline;
use super::arguments::Arguments;
use super::call::StableDiffusionCall;
use super::conditioning::Conditioning;
use super::loading::{FromComponents, StableDiffusionLoader};
use super::task::{Setting, Start, Task};
use crate::error::Result;
use crate::image_processor::{ImageInput, PreprocessOptions};
use crate::pipelines::Prompt;
use crate::pipelines::image_latents::{check_channels, check_count, is_latent, repeat, size_of};
use crate::pipelines::shared_methods::is_another_pipeline;
use crate::pipelines::strength::check_strength;
use crate::torch::{Generator, randn_tensor};
use std::path::Path;
use tch::Tensor;

/// Picture to picture with Stable Diffusion 1.x and 2.x.
///
/// It is a [`StableDiffusionPipeline`] with another call: components and techniques are reached as there.
///
/// # Examples
/// ```
/// use tch_diffusers::{StableDiffusionImg2ImgPipeline, utils::assets::bundled_model};
/// let blue = image::RgbImage::from_pixel(128, 128, image::Rgb([0, 0, 255]));
/// let mut pipe = StableDiffusionImg2ImgPipeline::from_pretrained(bundled_model()?).load()?;
/// let call = pipe.call("a red circle on a blue background", blue).strength(0.5);
/// let output = call.num_inference_steps(4).seed(0).run()?;
/// assert_eq!(output.images.to_rgb()?[0].dimensions(), (128, 128));
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct StableDiffusionImg2ImgPipeline(StableDiffusionPipeline);

impl StableDiffusionImg2ImgPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "StableDiffusionImg2ImgPipeline";

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

    /// Prepares pictures of `prompt`, a text or a list of texts, that start from `image`: a picture, one for each prompt, or
    /// a tensor. They get its size, cut to multiples of 8.
    pub fn call(&mut self, prompt: impl Into<Prompt>, image: impl Into<ImageInput>) -> StableDiffusionImg2ImgCall<'_> {
        StableDiffusionCall::new(&mut self.0, prompt.into(), ImageToImage::new(image.into()))
    }

    /// As [`StableDiffusionImg2ImgPipeline::call`], with embeddings of the prompts in place of texts.
    ///
    /// # Shapes
    /// `prompt_embeds` is `[batch, tokens, hidden_size]`. With guidance, `negative_prompt_embeds` is needed as well.
    pub fn call_embeds(
        &mut self,
        prompt_embeds: Tensor,
        image: impl Into<ImageInput>,
    ) -> StableDiffusionImg2ImgCall<'_> {
        StableDiffusionCall::of_embeds(&mut self.0, prompt_embeds, ImageToImage::new(image.into()))
    }
}

is_another_pipeline!(StableDiffusionImg2ImgPipeline, StableDiffusionPipeline);

impl FromComponents for StableDiffusionImg2ImgPipeline {
    const OUTDATED_OPTION: (&'static str, bool) = StableDiffusionPipeline::OUTDATED_OPTION;
}

/// A call of [`StableDiffusionImg2ImgPipeline`] under way.
pub type StableDiffusionImg2ImgCall<'a> = StableDiffusionCall<'a, ImageToImage>;

/// Drawing from a picture.
#[derive(Debug)]
pub struct ImageToImage {
    image: ImageInput,
    strength: f64,
}

impl ImageToImage {
    fn new(image: ImageInput) -> Self {
        Self { image, strength: 0.8 }
    }
}

impl StableDiffusionImg2ImgCall<'_> {
    /// How much of the picture is drawn anew, 0 to 1: of 1 nothing is left, and of 0.5 the second half of the steps is taken.
    /// 0.8 by default.
    pub fn strength(mut self, strength: f64) -> Self {
        self.task.strength = strength;
        self
    }
}

impl Task for ImageToImage {
    const ENCODES_IMAGE: bool = true;

    fn size(&self, pipe: &StableDiffusionPipeline, _arguments: &Arguments<'_>) -> Result<(i64, i64)> {
        size_of(&pipe.image_processor, &self.image, pipe.vae_scale_factor())
    }

    fn check(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<()> {
        check_strength(self.strength)?;
        check_channels(&pipe.vae, &self.image)?;
        check_count("image", self.image.count(), arguments.pictures())
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }

    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Start> {
        let (pipe, pictures) = (setting.pipe, setting.pictures);
        let image = pipe.image_processor.preprocess_with(&self.image, &PreprocessOptions::default())?;
        let image = image.f_to_device(setting.device)?.f_to_kind(setting.kind)?;
        let image_latents = match generators.len() {
            _ if is_latent(&pipe.image_processor, &self.image) => image,
            0 | 1 => setting.encode(&image, generators)?,
            // Each picture's latents are drawn by its own generator.
            _ if self.image.count() < pictures => setting.encode(&repeat(&image, pictures)?, generators)?,
            _ => setting.encode(&image, generators)?,
        };
        let image_latents = repeat(&image_latents, pictures)?;
        let noise = randn_tensor(&image_latents.size(), generators, setting.kind, setting.device)?;
        let latents = setting.add_noise(&image_latents, &noise)?;
        Ok(Start { latents, conditioning: Conditioning::None })
    }
}
