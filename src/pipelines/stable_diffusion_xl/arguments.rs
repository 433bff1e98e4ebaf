//! The arguments that calls of both pipelines share: what they may be, and what they come to.

use super::StableDiffusionXLPipeline;
use super::denoise::Callback;
use super::micro_conditioning::Sizes;
use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::image_processor::OutputType;
use crate::pipelines::Prompt;
use crate::pipelines::checks::{check_finite, check_images_per_prompt, check_run, check_sides};
use crate::pipelines::generators::Generators;
use crate::pipelines::two_prompts::{PooledPromptEmbeds, TwoPrompts};
use crate::schedulers::{Scheduler, Timesteps};
use tch::Tensor;

/// What a call is told.
pub struct Arguments<'a> {
    pub(super) prompts: TwoPrompts,
    pub(super) height: Option<i64>,
    pub(super) width: Option<i64>,
    pub(super) num_inference_steps: usize,
    pub(super) timesteps: Option<Vec<f64>>,
    pub(super) sigmas: Option<Vec<f64>>,
    pub(super) denoising_end: Option<f64>,
    pub(super) guidance_scale: f64,
    pub(super) guidance_rescale: f64,
    pub(super) num_images_per_prompt: i64,
    pub(super) eta: f64,
    pub(super) generators: Generators<'a>,
    pub(super) latents: Option<Tensor>,
    pub(super) clip_skip: Option<usize>,
    pub(super) sizes: Sizes,
    pub(super) negative_sizes: Sizes,
    pub(super) output_type: OutputType,
    pub(super) callback: Option<Callback<'a>>,
}

impl Arguments<'_> {
    pub(super) fn new(prompt: Option<Prompt>, embeds: Option<PooledPromptEmbeds>) -> Self {
        Self {
            prompts: TwoPrompts::new(prompt, embeds),
            height: None,
            width: None,
            num_inference_steps: 50,
            timesteps: None,
            sigmas: None,
            denoising_end: None,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            num_images_per_prompt: 1,
            eta: 0.0,
            generators: Generators::Global,
            latents: None,
            clip_skip: None,
            sizes: Sizes::default(),
            negative_sizes: Sizes::default(),
            output_type: OutputType::Image,
            callback: None,
        }
    }

    /// How many pictures there will be.
    pub(super) fn pictures(&self) -> i64 {
        self.prompts.count().saturating_mul(self.num_images_per_prompt)
    }

    /// Height and width in pixels; the model's own where none is given.
    pub(super) fn size(&self, pipe: &StableDiffusionXLPipeline) -> Result<(i64, i64)> {
        if let (Some(height), Some(width)) = (self.height, self.width) {
            return Ok((height, width));
        }
        let factor = pipe.vae_scale_factor();
        let (height, width) = match &pipe.unet.config().sample_size {
            Some(OneOrMany::One(side)) => (*side, *side),
            Some(OneOrMany::Many(sides)) if sides.len() == 2 => (sides[0], sides[1]),
            _ => return Err(Error::Argument("the UNet has no `sample_size`: give `height` and `width`".into())),
        };
        Ok((self.height.unwrap_or(height * factor), self.width.unwrap_or(width * factor)))
    }

    /// Holds the arguments to what they may be, for pictures of this height and width.
    pub(super) fn check(&self, pipe: &StableDiffusionXLPipeline, (height, width): (i64, i64)) -> Result<()> {
        self.prompts.check(true)?;
        check_images_per_prompt(self.num_images_per_prompt)?;
        check_sides(height, width, pipe.vae_scale_factor().max(8), self.pictures())?;
        check_finite(&[
            ("guidance_scale", self.guidance_scale),
            ("guidance_rescale", self.guidance_rescale),
            ("eta", self.eta),
            ("denoising_end", self.denoising_end.unwrap_or_default()),
        ])?;
        check_run(self.num_inference_steps, self.timesteps.as_deref(), self.sigmas.as_deref())
    }

    /// Lays the run out, and says how many steps it has.
    pub(super) fn set_timesteps(&self, scheduler: &mut dyn Scheduler) -> Result<usize> {
        let (asked, custom) = match (&self.timesteps, &self.sigmas) {
            (Some(_), Some(_)) => return Err(Error::Argument("give either `timesteps` or `sigmas`, not both".into())),
            (Some(timesteps), None) => (Timesteps::Timesteps(timesteps), true),
            (None, Some(sigmas)) => (Timesteps::Sigmas(sigmas), true),
            (None, None) => (Timesteps::Steps(self.num_inference_steps), false),
        };
        scheduler.set_timesteps(asked)?;
        Ok(if custom { scheduler.timesteps().len() } else { self.num_inference_steps })
    }

    /// What the UNet is told of the text, the negative prompts' first with guidance.
    pub(super) fn embeds(&self, pipe: &StableDiffusionXLPipeline) -> Result<PooledPromptEmbeds> {
        let (prompts, images) = (&self.prompts, self.num_images_per_prompt);
        let embeds = match (prompts.texts(), &prompts.embeds) {
            (Some((first, second)), _) => pipe.encode_prompt(&first, &second, self.clip_skip)?,
            (None, Some(embeds)) => given(pipe, embeds)?,
            (None, None) => return Err(Error::Argument("there is no prompt".into())),
        };
        if !pipe.guides(self.guidance_scale) {
            return embeds.repeated(images);
        }
        let negative = match (&prompts.negative_embeds, prompts.negative_texts()) {
            (Some(negative), _) => given(pipe, negative)?,
            (None, Some((first, second))) => pipe.encode_prompt(&first, &second, None)?,
            (None, None) if pipe.force_zeros_for_empty_prompt => embeds.zeros()?,
            (None, None) => {
                let nothing = vec![""; prompts.count() as usize];
                pipe.encode_prompt(&nothing, &nothing, None)?
            }
        };
        embeds.repeated(images)?.after(&negative.repeated(images)?)
    }
}

fn given(pipe: &StableDiffusionXLPipeline, embeds: &PooledPromptEmbeds) -> Result<PooledPromptEmbeds> {
    let on_device = embeds.on(pipe.device())?;
    let prompt_embeds = on_device.prompt_embeds.f_to_kind(pipe.text_kind())?;
    Ok(PooledPromptEmbeds { prompt_embeds, ..on_device })
}

/// The timestep of the training before which `part` of the noise is gone.
pub(super) fn cutoff(scheduler: &dyn Scheduler, part: f64) -> Result<f64> {
    let train = scheduler.config().get("num_train_timesteps").and_then(serde_json::Value::as_f64);
    let train = train.ok_or_else(|| {
        let text = "`denoising_start` and `denoising_end` need a scheduler with `num_train_timesteps`";
        Error::Argument(text.into())
    })?;
    Ok((train - part * train).round_ties_even())
}

/// A part of the denoising counts where it is above 0 and below 1, as in diffusers.
pub(super) fn is_part(part: &f64) -> bool {
    0.0 < *part && *part < 1.0
}
