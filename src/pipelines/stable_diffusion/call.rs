//! One call of a pipeline: its arguments, and the way from them to pictures.

use super::StableDiffusionPipeline;
use super::arguments::Arguments;
use super::denoise::{Denoise, StepEnd};
use super::lora::CrossAttentionKwargs;
use super::memory_estimate::{Plan, Without};
use super::memory_report::LastCall;
use super::task::{Setting, TakesSize, Task, TextToImage};
use crate::error::Result;
use crate::image_processor::{Images, OutputType};
use crate::models::memory::MemoryEstimate;
use crate::nn::LoraScale;
use crate::pipelines::generators::Generators;
use crate::pipelines::memory_report::{CHECK, DECODE, DENOISE, ENCODE_IMAGE, ENCODE_PROMPT, Watch};
use crate::pipelines::shared_methods::{common_arguments, unet_arguments};
use crate::pipelines::strength::begin;
use crate::pipelines::{PipelineMixin, Prompt};
use crate::torch::{Generator, NumberExt};
use tch::Tensor;

/// What a call gives.
#[derive(Debug)]
pub struct StableDiffusionPipelineOutput {
    /// The pictures, in the form that was asked for.
    pub images: Images,
    /// Whether each picture was found to show what it should not, and is black therefore; none where nobody looked: without
    /// a safety checker, and for latents.
    pub nsfw_content_detected: Option<Vec<bool>>,
}

/// A call of a Stable Diffusion pipeline under way; its methods are named as the arguments of `__call__`.
///
/// `T` is what is drawn from: noise alone for [`StableDiffusionPipeline`], a picture for
/// [`StableDiffusionImg2ImgPipeline`](super::StableDiffusionImg2ImgPipeline), and a picture with a mask for
/// [`StableDiffusionInpaintPipeline`](super::StableDiffusionInpaintPipeline).
#[must_use = "nothing is drawn before `run`"]
pub struct StableDiffusionCall<'a, T = TextToImage> {
    pipe: &'a mut StableDiffusionPipeline,
    arguments: Arguments<'a>,
    pub(super) task: T,
}

impl<'a, T> StableDiffusionCall<'a, T> {
    pub(super) fn new(pipe: &'a mut StableDiffusionPipeline, prompt: Prompt, task: T) -> Self {
        Self { pipe, arguments: Arguments::new(Some(prompt), None), task }
    }

    pub(super) fn of_embeds(pipe: &'a mut StableDiffusionPipeline, prompt_embeds: Tensor, task: T) -> Self {
        Self { pipe, arguments: Arguments::new(None, Some(prompt_embeds)), task }
    }

    /// What the picture should not show: one text for one prompt, a list for a list. Nothing by default.
    pub fn negative_prompt(mut self, negative_prompt: impl Into<Prompt>) -> Self {
        self.arguments.negative_prompt = Some(negative_prompt.into());
        self
    }

    /// The negative prompts' embeddings, shaped like the prompts'.
    pub fn negative_prompt_embeds(mut self, embeds: Tensor) -> Self {
        self.arguments.negative_prompt_embeds = Some(embeds);
        self
    }

    /// How much the prompt counts; 7.5 by default, and no guidance at 1 or below.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.arguments.guidance_scale = scale;
        self
    }

    common_arguments!();

    unet_arguments!();

    /// How many of the text encoder's last layers are left out; none by default.
    pub fn clip_skip(mut self, layers: usize) -> Self {
        self.arguments.clip_skip = Some(layers);
        self
    }

    /// What attention is told: the scale of LoRAs in this call.
    pub fn cross_attention_kwargs(mut self, cross_attention_kwargs: CrossAttentionKwargs) -> Self {
        self.arguments.cross_attention_kwargs = cross_attention_kwargs;
        self
    }

    /// Called after each step; may change what it sees, or interrupt. An error ends the call.
    pub fn callback_on_step_end(mut self, callback: impl FnMut(&mut StepEnd) -> Result<()> + 'a) -> Self {
        self.arguments.callback = Some(Box::new(callback));
        self
    }
}

impl<T: TakesSize> StableDiffusionCall<'_, T> {
    /// The picture's height in pixels, a multiple of 8, or of what the VAE shrinks by; the model's own by default.
    pub fn height(mut self, pixels: i64) -> Self {
        self.arguments.height = Some(pixels);
        self
    }

    /// The picture's width in pixels, a multiple of 8; the model's own by default.
    pub fn width(mut self, pixels: i64) -> Self {
        self.arguments.width = Some(pixels);
        self
    }

    /// The noise to start from, `[batch, channels, height / 8, width / 8]`, with variance 1.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.arguments.latents = Some(latents);
        self
    }
}

impl StableDiffusionCall<'_> {
    /// How far guidance's overexposure is corrected, 0 to 1; see [`super::rescale_noise_cfg`]. 0 by default.
    pub fn guidance_rescale(mut self, rescale: f64) -> Self {
        self.arguments.guidance_rescale = rescale;
        self
    }
}

impl<T: Task> StableDiffusionCall<'_, T> {
    /// Draws.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for arguments that do not fit together;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where a model has no room; whatever a callback fails with. The
    /// pipeline can be called again afterwards.
    pub fn run(mut self) -> Result<StableDiffusionPipelineOutput> {
        let _no_grad = tch::no_grad_guard();
        let _scale = LoraScale::new(self.arguments.cross_attention_kwargs.scale);
        // What is not come to is not measured: without a safety checker there is no last part.
        let names: &'static [&'static str] = match T::ENCODES_IMAGE {
            true => &[ENCODE_PROMPT, ENCODE_IMAGE, DENOISE, DECODE, CHECK],
            false => &[ENCODE_PROMPT, DENOISE, DECODE, CHECK],
        };
        let (mut watch, mut plan) = (Watch::start(self.pipe.device(), names), None);
        let output = self.draw(&mut watch, &mut plan);
        let measured = plan.zip(watch.finish(output.is_err()));
        self.pipe.last_call = measured.map(|(plan, memory)| LastCall { plan, memory });
        self.pipe.maybe_free_model_hooks();
        output
    }

    /// What the call will take on the device where it is done, with the techniques that are switched on. The encoding of a
    /// picture is not reckoned; it takes less than the decoding.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for arguments that do not fit together;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a UNet without modules.
    pub fn estimate_memory(&self) -> Result<MemoryEstimate> {
        let (height, width) = self.check()?;
        self.pipe.estimate(self.plan(height, width), Without::default())
    }

    /// Height and width of the pictures, once all arguments are seen to fit together.
    fn check(&self) -> Result<(i64, i64)> {
        let (height, width) = self.task.size(self.pipe, &self.arguments)?;
        self.arguments.check(height, width, self.pipe.vae_scale_factor())?;
        self.arguments.cross_attention_kwargs.check(self.pipe)?;
        self.task.check(self.pipe, &self.arguments)?;
        Ok((height, width))
    }

    fn plan(&self, height: i64, width: i64) -> Plan {
        Plan {
            height,
            width,
            prompts: self.arguments.prompts(),
            images_per_prompt: self.arguments.num_images_per_prompt,
            guides: self.pipe.guides(self.arguments.guidance_scale),
            encodes: self.arguments.prompt.is_some(),
            decodes: self.arguments.output_type != OutputType::Latent,
            dtype: self.pipe.text_encoder_kind(),
        }
    }

    /// Draws, and says what as soon as it is known.
    fn draw(&mut self, watch: &mut Watch, plan: &mut Option<Plan>) -> Result<StableDiffusionPipelineOutput> {
        let (height, width) = self.check()?;
        *plan = Some(self.plan(height, width));
        let steps = self.arguments.set_timesteps(&mut *self.pipe.scheduler)?;
        let first = begin(&mut *self.pipe.scheduler, steps, self.task.strength())?;
        let device = self.pipe.device();
        let prompt_embeds = self.arguments.embeds(self.pipe)?;
        let prompt_embeds = prompt_embeds.f_to_device(device)?;
        watch.end_stage();

        let (mut given, mut seeded) = (std::mem::take(&mut self.arguments.generators), vec![]);
        let generators = given.resolve(&mut seeded)?;
        let setting = Setting {
            pipe: self.pipe,
            latents: self.arguments.latents.as_ref(),
            height,
            width,
            pictures: self.arguments.pictures(),
            kind: prompt_embeds.kind(),
            device,
            timestep: self.pipe.scheduler.timesteps().get(first).copied().unwrap_or_default(),
        };
        let kind = setting.kind;
        let start = self.task.start(&setting, generators)?;
        if T::ENCODES_IMAGE {
            watch.end_stage();
        }

        let Arguments { eta, guidance_scale, guidance_rescale, output_type, .. } = self.arguments;
        let callback = self.arguments.callback.take();
        let denoise = Denoise { eta, guidance_rescale, callback, first, conditioning: start.conditioning };
        let latents = denoise.run(self.pipe, start.latents, prompt_embeds, guidance_scale, generators)?;
        watch.end_stage();
        if output_type == OutputType::Latent {
            return Ok(StableDiffusionPipelineOutput { images: Images::Latent(latents), nsfw_content_detected: None });
        }
        let latents = latents.over(self.pipe.vae.config().scaling_factor)?;
        let image = self.pipe.decode(&latents)?;
        if self.pipe.safety_checker.is_some() {
            watch.end_stage();
        }
        let (image, nsfw_content_detected) = self.pipe.run_safety_checker(&image, kind)?;
        let images = self.pipe.pictures(&image, nsfw_content_detected.as_deref(), output_type)?;
        watch.end_stage();
        let images = self.task.finish(self.pipe, (height, width), images)?;
        Ok(StableDiffusionPipelineOutput { images, nsfw_content_detected })
    }
}
