//! One call of the pipeline: its arguments, and the way from them to pictures.

use super::arguments::Arguments;
use super::denoise::{Denoise, FluxStepEnd};
use super::latents::{image_ids, pack, shift_of, unpack};
use super::pipeline_flux::FluxPipeline;
use crate::error::{Error, Result};
use crate::image_processor::{Images, OutputType};
use crate::nn::Module;
use crate::pipelines::generators::Generators;
use crate::pipelines::memory_report::{DECODE, DENOISE, ENCODE_PROMPT, Watch};
use crate::pipelines::shared_methods::common_arguments;
use crate::pipelines::two_prompts::{PooledPromptEmbeds, two_prompts_arguments};
use crate::pipelines::{PipelineMixin, Prompt};
use crate::schedulers::{Timesteps, linspace};
use crate::torch::{Generator, NumberExt, randn_tensor};
use tch::{Kind, Tensor};

/// What a call gives.
#[derive(Debug)]
pub struct FluxPipelineOutput {
    /// The pictures, in the form that was asked for; latents are `[batch, tokens, channels]`.
    pub images: Images,
}

/// A call of [`FluxPipeline`] under way; its methods are named as the arguments of `__call__`. The first text encoder is
/// CLIP, which gives an embedding of the whole prompt, and the second one T5. Negative prompts count where
/// [`FluxCall::true_cfg_scale`] is above 1.
#[must_use = "nothing is drawn before `run`"]
pub struct FluxCall<'a> {
    pipe: &'a mut FluxPipeline,
    arguments: Arguments<'a>,
}

impl<'a> FluxCall<'a> {
    pub(super) fn new(pipe: &'a mut FluxPipeline, prompt: Option<Prompt>, embeds: Option<PooledPromptEmbeds>) -> Self {
        Self { pipe, arguments: Arguments::new(prompt, embeds) }
    }

    two_prompts_arguments!();

    /// How much the prompt counts against the negative prompt, by a second prediction in each step; 1, the default, is
    /// without.
    pub fn true_cfg_scale(mut self, scale: f64) -> Self {
        self.arguments.true_cfg_scale = scale;
        self
    }

    /// The picture's height in pixels, a multiple of 16 where the VAE has a factor of 8; 1024 by default.
    pub fn height(mut self, pixels: i64) -> Self {
        self.arguments.height = Some(pixels);
        self
    }

    /// The picture's width in pixels; as [`FluxCall::height`].
    pub fn width(mut self, pixels: i64) -> Self {
        self.arguments.width = Some(pixels);
        self
    }

    /// How many denoising steps; 28 by default.
    pub fn num_inference_steps(mut self, steps: usize) -> Self {
        self.arguments.num_inference_steps = steps;
        self
    }

    /// Just these noise levels, in descending order and before they are shifted.
    pub fn sigmas(mut self, sigmas: &[f64]) -> Self {
        self.arguments.sigmas = Some(sigmas.to_vec());
        self
    }

    /// The guidance scale that a distilled model takes as an input, such as FLUX.1-dev; 3.5 by default. Others pass it over.
    pub fn guidance_scale(mut self, scale: f64) -> Self {
        self.arguments.guidance_scale = scale;
        self
    }

    common_arguments!();

    /// The noise to start from, `[batch, tokens, channels]`: a token for each square of two by two latents.
    pub fn latents(mut self, latents: Tensor) -> Self {
        self.arguments.latents = Some(latents);
        self
    }

    /// Called after each step; may change what it sees, or interrupt. An error ends the call.
    pub fn callback_on_step_end(mut self, callback: impl FnMut(&mut FluxStepEnd) -> Result<()> + 'a) -> Self {
        self.arguments.callback = Some(Box::new(callback));
        self
    }

    /// How many tokens of the prompt T5 reads, with the one that ends it; 512 by default, which is the most. FLUX.1-schnell
    /// was trained with 256.
    pub fn max_sequence_length(mut self, tokens: usize) -> Self {
        self.arguments.max_sequence_length = tokens;
        self
    }

    /// Draws.
    ///
    /// # Errors
    /// [`Error::Argument`] for arguments that do not fit together, or a scheduler that takes no noise levels;
    /// [`Error::OutOfMemory`] where a model has no room; whatever a callback fails with. The pipeline can be called again
    /// afterwards.
    pub fn run(mut self) -> Result<FluxPipelineOutput> {
        let _no_grad = tch::no_grad_guard();
        let mut watch = Watch::start(self.pipe.device(), &[ENCODE_PROMPT, DENOISE, DECODE]);
        let output = self.draw(&mut watch);
        self.pipe.last_call = watch.finish(output.is_err());
        self.pipe.maybe_free_model_hooks();
        output
    }

    fn draw(&mut self, watch: &mut Watch) -> Result<FluxPipelineOutput> {
        let (height, width) = self.arguments.check(self.pipe)?;
        let (text, negative) = self.arguments.texts(self.pipe)?;
        watch.end_stage();
        let (mut given, mut seeded) = (std::mem::take(&mut self.arguments.generators), vec![]);
        let generators = given.resolve(&mut seeded)?;
        let (kind, device) = (text.prompt_embeds.f_kind()?, self.pipe.device());
        let latents = self.start([height, width], kind, generators)?;
        self.lay_out(&latents)?;
        let denoise = Denoise {
            text,
            negative: negative.map(|negative| (negative, self.arguments.true_cfg_scale)),
            image_ids: image_ids(height / 2, width / 2, kind, device)?,
            guidance_scale: self.arguments.guidance_scale,
            callback: self.arguments.callback.take(),
        };
        let latents = denoise.run(self.pipe, latents, generators)?;
        watch.end_stage();
        if self.arguments.output_type == OutputType::Latent {
            return Ok(FluxPipelineOutput { images: Images::Latent(latents) });
        }
        let config = self.pipe.vae.config();
        let latents = unpack(&latents, height, width)?.over(config.scaling_factor)?;
        // Differs from diffusers: there, a VAE without `shift_factor` fails.
        let latents = latents.plus(config.shift_factor.unwrap_or(0.0))?;
        let latents = latents.f_to_device(self.pipe.vae.node().execution_device())?;
        let image = self.pipe.vae.decode(&latents).map_err(|error| error.within("vae"))?;
        let images = self.pipe.image_processor.postprocess(&image, self.arguments.output_type)?;
        watch.end_stage();
        Ok(FluxPipelineOutput { images })
    }

    /// The latents to start from, packed.
    fn start(&self, [height, width]: [i64; 2], kind: Kind, generators: &mut [Generator]) -> Result<Tensor> {
        let (pictures, channels) = (self.arguments.pictures(), self.pipe.transformer.config().in_channels);
        let device = self.pipe.device();
        let Some(latents) = &self.arguments.latents else {
            return pack(&randn_tensor(&[pictures, channels / 4, height, width], generators, kind, device)?);
        };
        let expected = [pictures, height / 2 * (width / 2), channels];
        if latents.size() != expected {
            return Err(Error::Shape(format!("`latents` is {expected:?} for this call, got {:?}", latents.size())));
        }
        Ok(latents.f_to_device(device)?.f_to_kind(kind)?)
    }

    /// Lays out the noise levels, shifted for a picture of this size.
    fn lay_out(&mut self, latents: &Tensor) -> Result<()> {
        let (_, tokens, _) = latents.size3()?;
        let scheduler = &mut self.pipe.scheduler;
        let (mu, steps) = (shift_of(scheduler.config(), tokens), self.arguments.num_inference_steps);
        let even;
        let asked = match &self.arguments.sigmas {
            _ if scheduler.config().get("use_flow_sigmas").and_then(|on| on.as_bool()) == Some(true) => {
                Timesteps::Steps(steps)
            }
            Some(sigmas) => Timesteps::Sigmas(sigmas),
            None => {
                even = linspace(1.0, 1.0 / steps as f64, steps);
                Timesteps::Sigmas(&even)
            }
        };
        scheduler.set_timesteps_with_mu(asked, mu)?;
        scheduler.set_begin_index(0);
        Ok(())
    }
}
