//! One call of a pipeline: its arguments, and the way from them to pictures.

use super::arguments::Arguments;
use super::denoise::{Denoise, StableDiffusionXLStepEnd};
use super::pipeline_stable_diffusion_xl::StableDiffusionXLPipeline;
use super::task::{Setting, TakesSize, Task, TextToImage};
use crate::error::Result;
use crate::image_processor::{Images, OutputType};
use crate::pipelines::generators::Generators;
use crate::pipelines::memory_report::{DECODE, DENOISE, ENCODE_IMAGE, ENCODE_PROMPT, Watch};
use crate::pipelines::shared_methods::{common_arguments, unet_arguments};
use crate::pipelines::two_prompts::{PooledPromptEmbeds, two_prompts_arguments};
use crate::pipelines::{PipelineMixin, Prompt};
use crate::torch::Generator;
use tch::Tensor;

/// What a call gives.
#[derive(Debug)]
pub struct StableDiffusionXLPipelineOutput {
    /// The pictures, in the form that was asked for.
    pub images: Images,
}

/// A call of a Stable Diffusion XL pipeline under way; its methods are named as the arguments of `__call__`.
///
/// Without a negative prompt, embeddings of zeros stand for it, or those of an empty text, as the folder's
/// `force_zeros_for_empty_prompt` says. `T` is what is drawn from: noise alone for [`StableDiffusionXLPipeline`], and a picture
/// for [`StableDiffusionXLImg2ImgPipeline`](super::StableDiffusionXLImg2ImgPipeline).
#[must_use = "nothing is drawn before `run`"]
pub struct StableDiffusionXLCall<'a, T = TextToImage> {
    pipe: &'a mut StableDiffusionXLPipeline,
    arguments: Arguments<'a>,
    pub(super) task: T,
}

impl<'a, T> StableDiffusionXLCall<'a, T> {
    pub(super) fn new(
        pipe: &'a mut StableDiffusionXLPipeline,
        prompt: Option<Prompt>,
        embeds: Option<PooledPromptEmbeds>,
        task: T,
    ) -> Self {
        Self { pipe, arguments: Arguments::new(prompt, embeds), task }
    }

    two_prompts_arguments!();

    common_arguments!();

    unet_arguments!();

    /// The size that the picture is told to have come from, height and width in pixels; its own by default.
    pub fn original_size(mut self, height: i64, width: i64) -> Self {
        self.arguments.sizes.original_size = Some((height, width));
        self
    }

    /// Where the picture is told to be cut from, as pixels from the top and from the left; 0 and 0 by default, which gives
    /// pictures with their object in the middle.
    pub fn crops_coords_top_left(mut self, top: i64, left: i64) -> Self {
        self.arguments.sizes.crops_coords_top_left = (top, left);
        self
    }

    /// The size that the picture is told to have, height and width in pixels; its own by default.
    pub fn target_size(mut self, height: i64, width: i64) -> Self {
        self.arguments.sizes.target_size = Some((height, width));
        self
    }

    /// As [`StableDiffusionXLCall::original_size`], of what the picture should not be; counts beside
    /// [`StableDiffusionXLCall::negative_target_size`].
    pub fn negative_original_size(mut self, height: i64, width: i64) -> Self {
        self.arguments.negative_sizes.original_size = Some((height, width));
        self
    }

    /// As [`StableDiffusionXLCall::crops_coords_top_left`], of what the picture should not be.
    pub fn negative_crops_coords_top_left(mut self, top: i64, left: i64) -> Self {
        self.arguments.negative_sizes.crops_coords_top_left = (top, left);
        self
    }

    /// As [`StableDiffusionXLCall::target_size`], of what the picture should not be; counts beside
    /// [`StableDiffusionXLCall::negative_original_size`].
    pub fn negative_target_size(mut self, height: i64, width: i64) -> Self {
        self.arguments.negative_sizes.target_size = Some((height, width));
        self
    }

    /// Ends before all noise is gone, after this part of it, above 0 and below 1, for a refiner to go on from the latents.
    pub fn denoising_end(mut self, part: f64) -> Self {
        self.arguments.denoising_end = Some(part);
        self
    }

    /// How much the prompt counts; 5 by default, and no guidance at 1 or below.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.arguments.guidance_scale = scale;
        self
    }

    /// How far guidance's overexposure is corrected, 0 to 1; see
    /// [`rescale_noise_cfg`](crate::pipelines::stable_diffusion::rescale_noise_cfg). 0 by default.
    pub fn guidance_rescale(mut self, rescale: f64) -> Self {
        self.arguments.guidance_rescale = rescale;
        self
    }

    /// The noise to start from, `[batch, channels, height / 8, width / 8]`, with variance 1; with a picture, the latents that
    /// take its place, as they are.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.arguments.latents = Some(latents);
        self
    }

    /// How many of the text encoders' last layers are left out beside the last one; none by default.
    pub fn clip_skip(mut self, layers: usize) -> Self {
        self.arguments.clip_skip = Some(layers);
        self
    }

    /// Called after each step; may change what it sees, or interrupt. An error ends the call.
    pub fn callback_on_step_end(
        mut self,
        callback: impl FnMut(&mut StableDiffusionXLStepEnd) -> Result<()> + 'a,
    ) -> Self {
        self.arguments.callback = Some(Box::new(callback));
        self
    }
}

impl<T: TakesSize> StableDiffusionXLCall<'_, T> {
    /// The picture's height in pixels, a multiple of 8; the model's own by default.
    pub fn height(mut self, pixels: i64) -> Self {
        self.arguments.height = Some(pixels);
        self
    }

    /// The picture's width in pixels, a multiple of 8; the model's own by default.
    pub fn width(mut self, pixels: i64) -> Self {
        self.arguments.width = Some(pixels);
        self
    }
}

impl<T: Task> StableDiffusionXLCall<'_, T> {
    /// Draws.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for arguments that do not fit together;
    /// [`Error::Config`](crate::Error::Config) for a UNet that is told other sizes;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where a model has no room; whatever a callback fails with. The
    /// pipeline can be called again afterwards.
    pub fn run(mut self) -> Result<StableDiffusionXLPipelineOutput> {
        let _no_grad = tch::no_grad_guard();
        let names: &'static [&'static str] = match T::ENCODES_IMAGE {
            true => &[ENCODE_PROMPT, ENCODE_IMAGE, DENOISE, DECODE],
            false => &[ENCODE_PROMPT, DENOISE, DECODE],
        };
        let mut watch = Watch::start(self.pipe.device(), names);
        let output = self.draw(&mut watch);
        self.pipe.last_call = watch.finish(output.is_err());
        self.pipe.maybe_free_model_hooks();
        output
    }

    fn draw(&mut self, watch: &mut Watch) -> Result<StableDiffusionXLPipelineOutput> {
        let size = self.task.size(self.pipe, &self.arguments)?;
        self.arguments.check(self.pipe, size)?;
        self.task.check(self.pipe, &self.arguments)?;
        let timesteps = self.task.timesteps(&self.arguments, &mut *self.pipe.scheduler)?;
        let embeds = self.arguments.embeds(self.pipe)?;
        watch.end_stage();
        let (mut given, mut seeded) = (std::mem::take(&mut self.arguments.generators), vec![]);
        let generators = given.resolve(&mut seeded)?;
        let setting = Setting {
            pipe: self.pipe,
            arguments: &self.arguments,
            size,
            pooled: embeds.pooled_prompt_embeds.size().last().copied().unwrap_or_default(),
            kind: embeds.prompt_embeds.f_kind()?,
            device: self.pipe.device(),
            timestep: timesteps.first().copied().unwrap_or_default(),
        };
        // What does not fit is found before the VAE is at work.
        let add_time_ids = self.task.add_time_ids(&setting)?;
        let latents = self.task.start(&setting, generators)?;
        if T::ENCODES_IMAGE {
            watch.end_stage();
        }
        let denoise = Denoise {
            embeds,
            add_time_ids,
            guidance_scale: self.arguments.guidance_scale,
            guidance_rescale: self.arguments.guidance_rescale,
            eta: self.arguments.eta,
            timesteps,
            callback: self.arguments.callback.take(),
        };
        let latents = denoise.run(self.pipe, latents, generators)?;
        watch.end_stage();
        if self.arguments.output_type == OutputType::Latent {
            return Ok(StableDiffusionXLPipelineOutput { images: Images::Latent(latents) });
        }
        let image = self.pipe.decode(&latents)?;
        let images = self.pipe.image_processor.postprocess(&image, self.arguments.output_type)?;
        watch.end_stage();
        Ok(StableDiffusionXLPipelineOutput { images })
    }
}
