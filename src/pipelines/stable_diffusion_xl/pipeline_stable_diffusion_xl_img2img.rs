//! `StableDiffusionXLImg2ImgPipeline`: pictures from a picture, or from the base model's latents, and a prompt.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl_img2img.py` at 0.42.1. IP-Adapters and the
//! invisible watermark are left out.

use super::arguments::{Arguments, cutoff, is_part};
use super::call::StableDiffusionXLCall;
use super::loading::StableDiffusionXLLoader;
use super::micro_conditioning::rows;
use super::task::{Setting, Task, until};
use super::{StableDiffusionXLComponents, StableDiffusionXLPipeline};
use crate::error::{Error, Result};
use crate::image_processor::{ImageInput, PreprocessOptions};
use crate::pipelines::image_latents::{check_channels, check_count, is_latent, repeat, size_of};
use crate::pipelines::shared_methods::is_another_pipeline;
use crate::pipelines::strength::{begin, check_strength};
use crate::pipelines::{PooledPromptEmbeds, Prompt};
use crate::schedulers::Scheduler;
use crate::torch::{Generator, randn_tensor};
use std::path::Path;
use tch::Tensor;

/// Picture to picture with Stable Diffusion XL, and the refiner's second half of a picture.
///
/// It is a [`StableDiffusionXLPipeline`] with another call: components and techniques are reached as there.
///
/// # Examples
/// The base model does eight tenths of the denoising, the refiner the rest:
/// ```no_run
/// use tch_diffusers::image_processor::{Images, OutputType};
/// use tch_diffusers::{StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline};
/// let mut base = StableDiffusionXLPipeline::from_pretrained("stabilityai/stable-diffusion-xl-base-1.0").load()?;
/// let refiner = "stabilityai/stable-diffusion-xl-refiner-1.0";
/// let mut refiner = StableDiffusionXLImg2ImgPipeline::from_pretrained(refiner).load()?;
/// let prompt = "a majestic lion jumping from a big stone at night";
/// let half = base.call(prompt).denoising_end(0.8).output_type(OutputType::Latent).seed(0).run()?;
/// let Images::Latent(latents) = half.images else { return Ok(()) };
/// let output = refiner.call(prompt, latents).denoising_start(0.8).seed(0).run()?;
/// assert_eq!(output.images.to_rgb()?.len(), 1);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct StableDiffusionXLImg2ImgPipeline(StableDiffusionXLPipeline);

impl StableDiffusionXLImg2ImgPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "StableDiffusionXLImg2ImgPipeline";

    /// Reads the pipeline that diffusers wrote to `folder`, whichever of Stable Diffusion XL's it was: see
    /// [`StableDiffusionXLPipeline::from_pretrained`].
    pub fn from_pretrained(folder: impl AsRef<Path>) -> StableDiffusionXLLoader<Self> {
        StableDiffusionXLLoader::new(folder.as_ref())
    }

    /// A pipeline of ready-made components.
    #[must_use]
    pub fn new(components: StableDiffusionXLComponents) -> Self {
        Self(StableDiffusionXLPipeline::new(components))
    }

    /// The pipeline with the components of another one and with what is switched on there. They move: no weight is copied,
    /// and [`StableDiffusionXLPipeline::from_pipe`] leads back.
    #[must_use]
    pub fn from_pipe(pipe: impl Into<StableDiffusionXLPipeline>) -> Self {
        Self(pipe.into())
    }

    /// Prepares pictures of `prompt`, a text or a list of texts, that start from `image`: a picture, one for each prompt, or
    /// a tensor, which may be latents. They get its size, cut to multiples of 8.
    pub fn call(
        &mut self,
        prompt: impl Into<Prompt>,
        image: impl Into<ImageInput>,
    ) -> StableDiffusionXLImg2ImgCall<'_> {
        StableDiffusionXLCall::new(&mut self.0, Some(prompt.into()), None, ImageToImage::new(image.into()))
    }

    /// As [`StableDiffusionXLImg2ImgPipeline::call`], with embeddings of the prompts in place of texts.
    pub fn call_embeds(
        &mut self,
        embeds: PooledPromptEmbeds,
        image: impl Into<ImageInput>,
    ) -> StableDiffusionXLImg2ImgCall<'_> {
        StableDiffusionXLCall::new(&mut self.0, None, Some(embeds), ImageToImage::new(image.into()))
    }
}

is_another_pipeline!(StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline);

/// A call of [`StableDiffusionXLImg2ImgPipeline`] under way.
pub type StableDiffusionXLImg2ImgCall<'a> = StableDiffusionXLCall<'a, ImageToImage>;

/// Drawing from a picture.
#[derive(Debug)]
pub struct ImageToImage {
    image: ImageInput,
    strength: f64,
    denoising_start: Option<f64>,
    aesthetic_score: f64,
    negative_aesthetic_score: f64,
}

impl ImageToImage {
    fn new(image: ImageInput) -> Self {
        let (aesthetic_score, negative_aesthetic_score) = (6.0, 2.5);
        Self { image, strength: 0.3, denoising_start: None, aesthetic_score, negative_aesthetic_score }
    }
}

impl StableDiffusionXLImg2ImgCall<'_> {
    /// How much of the picture is drawn anew, 0 to 1: of 1 nothing is left, and of 0.5 the second half of the steps is taken.
    /// 0.3 by default. Without a meaning beside [`StableDiffusionXLImg2ImgCall::denoising_start`].
    pub fn strength(mut self, strength: f64) -> Self {
        self.task.strength = strength;
        self
    }

    /// Begins after this part of the denoising, above 0 and below 1, with latents that another model left there at its
    /// `denoising_end`: no noise is added.
    pub fn denoising_start(mut self, part: f64) -> Self {
        self.task.denoising_start = Some(part);
        self
    }

    /// How beautiful the picture is to be, which the refiner is told; 6 by default.
    pub fn aesthetic_score(mut self, score: f64) -> Self {
        self.task.aesthetic_score = score;
        self
    }

    /// As [`StableDiffusionXLImg2ImgCall::aesthetic_score`], of what the picture should not be; 2.5 by default.
    pub fn negative_aesthetic_score(mut self, score: f64) -> Self {
        self.task.negative_aesthetic_score = score;
        self
    }
}

impl Task for ImageToImage {
    const ENCODES_IMAGE: bool = true;

    fn size(&self, pipe: &StableDiffusionXLPipeline, _: &Arguments<'_>) -> Result<(i64, i64)> {
        size_of(&pipe.image_processor, &self.image, pipe.vae_scale_factor())
    }

    fn check(&self, pipe: &StableDiffusionXLPipeline, arguments: &Arguments<'_>) -> Result<()> {
        check_strength(self.strength)?;
        check_channels(&pipe.vae, &self.image)?;
        match (self.denoising_start, arguments.denoising_end) {
            (Some(start), Some(end)) if is_part(&start) && is_part(&end) && start >= end => Err(Error::Argument(
                format!("`denoising_start` has to be below `denoising_end`, but is {start} beside {end}"),
            )),
            _ => check_count("image", self.image.count(), arguments.pictures()),
        }
    }

    fn timesteps(&self, arguments: &Arguments<'_>, scheduler: &mut dyn Scheduler) -> Result<Vec<f64>> {
        let steps = arguments.set_timesteps(scheduler)?;
        let first = match self.denoising_start.filter(is_part) {
            Some(start) => begin_after(scheduler, start)?,
            None => begin(scheduler, steps, Some(self.strength))?,
        };
        let timesteps = scheduler.timesteps().get(first..).unwrap_or_default().to_vec();
        until(scheduler, timesteps, arguments.denoising_end)
    }

    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Tensor> {
        let (pipe, pictures) = (setting.pipe, setting.pictures());
        if let Ok(latents) = setting.given_latents()? {
            return Ok(latents);
        }
        let image = pipe.image_processor.preprocess_with(&self.image, &PreprocessOptions::default())?;
        let image = image.f_to_device(setting.device)?.f_to_kind(setting.kind)?;
        let encode = |image: &Tensor, generators: &mut [Generator]| pipe.encode_image(image, setting.kind, generators);
        let latents = match generators.len() {
            _ if is_latent(&pipe.image_processor, &self.image) => image,
            0 | 1 => encode(&image, generators)?,
            // Each picture's latents are drawn by its own generator.
            _ if self.image.count() < pictures => encode(&repeat(&image, pictures)?, generators)?,
            _ => encode(&image, generators)?,
        };
        let latents = repeat(&latents, pictures)?;
        if self.denoising_start.is_some() {
            return Ok(latents);
        }
        let noise = randn_tensor(&latents.size(), generators, setting.kind, setting.device)?;
        pipe.scheduler.add_noise(&latents, &noise, &vec![setting.timestep; pictures as usize])
    }

    fn add_time_ids(&self, setting: &Setting<'_>) -> Result<Tensor> {
        let Setting { pipe, arguments, size, .. } = *setting;
        let (sizes, mut negative_sizes) = (arguments.sizes, arguments.negative_sizes);
        negative_sizes.original_size = negative_sizes.original_size.or(sizes.original_size);
        negative_sizes.target_size = negative_sizes.target_size.or(sizes.target_size);
        let (ids, negative) = if pipe.requires_aesthetics_score {
            let negative = negative_sizes.ids_with_score(size, self.negative_aesthetic_score);
            (sizes.ids_with_score(size, self.aesthetic_score), negative)
        } else {
            // As in diffusers, `negative_crops_coords_top_left` counts beside a score alone.
            negative_sizes.crops_coords_top_left = sizes.crops_coords_top_left;
            (sizes.ids(size), negative_sizes.ids(size))
        };
        pipe.check_added(ids.len(), setting.pooled)?;
        let repeated = |ids: &[f64]| -> Result<Tensor> {
            Ok(rows(&[ids], (setting.kind, setting.device))?.f_repeat([setting.pictures(), 1])?)
        };
        let ids = repeated(&ids)?;
        Ok(if setting.guides() { Tensor::f_cat(&[repeated(&negative)?, ids], 0)? } else { ids })
    }
}

/// Starts a run after `part` of the denoising, and says at which of its timesteps.
fn begin_after(scheduler: &mut dyn Scheduler, part: f64) -> Result<usize> {
    let cutoff = cutoff(scheduler, part)?;
    let mut left = scheduler.timesteps().iter().filter(|timestep| **timestep < cutoff).count();
    // A run of second order has each timestep twice but the first, and is not cut between the two.
    if scheduler.order() == 2 && left.is_multiple_of(2) {
        left += 1;
    }
    let first = scheduler.timesteps().len().checked_sub(left).ok_or_else(|| {
        Error::Argument(format!("a `denoising_start` of {part} is before the first step: leave it out"))
    })?;
    scheduler.set_begin_index(first);
    Ok(first)
}
