//! The arguments that calls of all Stable Diffusion pipelines share: what they may be, and what they come to.

use super::StableDiffusionPipeline;
use super::denoise::Callback;
use super::lora::CrossAttentionKwargs;
use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::image_processor::OutputType;
use crate::pipelines::Prompt;
use crate::pipelines::checks::{check_finite, check_images_per_prompt, check_run, check_sides};
use crate::pipelines::generators::Generators;
use crate::pipelines::pipeline_utils::repeat_for_images;
use crate::schedulers::{Scheduler, Timesteps};
use tch::Tensor;

/// What a call is told.
pub struct Arguments<'a> {
    pub(super) prompt: Option<Prompt>,
    pub(super) negative_prompt: Option<Prompt>,
    pub(super) prompt_embeds: Option<Tensor>,
    pub(super) negative_prompt_embeds: Option<Tensor>,
    pub(super) height: Option<i64>,
    pub(super) width: Option<i64>,
    pub(super) num_inference_steps: usize,
    pub(super) timesteps: Option<Vec<f64>>,
    pub(super) sigmas: Option<Vec<f64>>,
    pub(super) guidance_scale: f64,
    pub(super) guidance_rescale: f64,
    pub(super) num_images_per_prompt: i64,
    pub(super) eta: f64,
    pub(super) generators: Generators<'a>,
    pub(super) latents: Option<Tensor>,
    pub(super) clip_skip: Option<usize>,
    pub(super) cross_attention_kwargs: CrossAttentionKwargs,
    pub(super) output_type: OutputType,
    pub(super) callback: Option<Callback<'a>>,
}

impl Arguments<'_> {
    pub(super) fn new(prompt: Option<Prompt>, prompt_embeds: Option<Tensor>) -> Self {
        Self {
            prompt,
            negative_prompt: None,
            prompt_embeds,
            negative_prompt_embeds: None,
            height: None,
            width: None,
            num_inference_steps: 50,
            timesteps: None,
            sigmas: None,
            guidance_scale: 7.5,
            guidance_rescale: 0.0,
            num_images_per_prompt: 1,
            eta: 0.0,
            generators: Generators::Global,
            latents: None,
            clip_skip: None,
            cross_attention_kwargs: CrossAttentionKwargs::default(),
            output_type: OutputType::Image,
            callback: None,
        }
    }

    /// Height and width in pixels; the model's own where none is given.
    pub(super) fn size(&self, pipe: &StableDiffusionPipeline) -> Result<(i64, i64)> {
        if let (Some(height), Some(width)) = (self.height, self.width) {
            return Ok((height, width));
        }
        let factor = pipe.vae_scale_factor();
        // Differs from diffusers: there, a height without a width is passed over, and the other way round.
        let (height, width) = match &pipe.unet.config().sample_size {
            Some(OneOrMany::One(side)) => (*side, *side),
            Some(OneOrMany::Many(sides)) if sides.len() == 2 => (sides[0], sides[1]),
            _ => return Err(Error::Argument("the UNet has no `sample_size`: give `height` and `width`".into())),
        };
        Ok((self.height.unwrap_or(height * factor), self.width.unwrap_or(width * factor)))
    }

    /// How many prompts there are.
    pub(super) fn prompts(&self) -> i64 {
        match (&self.prompt, &self.prompt_embeds) {
            (Some(prompt), _) => prompt.texts().len() as i64,
            (None, Some(embeds)) => embeds.size().first().copied().unwrap_or(0),
            (None, None) => 0,
        }
    }

    /// How many pictures there will be.
    pub(super) fn pictures(&self) -> i64 {
        self.prompts().saturating_mul(self.num_images_per_prompt)
    }

    /// Lays the run out, and says how many steps it has.
    pub(super) fn set_timesteps(&self, scheduler: &mut dyn Scheduler) -> Result<usize> {
        scheduler.set_timesteps(match (&self.timesteps, &self.sigmas) {
            (Some(_), Some(_)) => return Err(Error::Argument("give either `timesteps` or `sigmas`, not both".into())),
            (Some(timesteps), None) => Timesteps::Timesteps(timesteps),
            (None, Some(sigmas)) => Timesteps::Sigmas(sigmas),
            (None, None) => Timesteps::Steps(self.num_inference_steps),
        })?;
        let custom = self.timesteps.is_some() || self.sigmas.is_some();
        Ok(if custom { scheduler.timesteps().len() } else { self.num_inference_steps })
    }

    /// Holds the arguments to what they may be. A side of the latents is one of the picture by `factor`.
    pub(super) fn check(&self, height: i64, width: i64, factor: i64) -> Result<()> {
        let refuse = |text: String| Err(Error::Argument(text));
        if self.prompts() == 0 {
            return refuse("there is no prompt".into());
        }
        check_images_per_prompt(self.num_images_per_prompt)?;
        // Differs from diffusers: there, 8 is enough for a VAE of more, whose pictures are smaller than asked for then.
        check_sides(height, width, factor.max(8), self.pictures())?;
        check_finite(&[
            ("guidance_scale", self.guidance_scale),
            ("guidance_rescale", self.guidance_rescale),
            ("eta", self.eta),
        ])?;
        check_run(self.num_inference_steps, self.timesteps.as_deref(), self.sigmas.as_deref())?;
        if let Some(embeds) = self.prompt_embeds.as_ref().filter(|embeds| embeds.dim() != 3) {
            return refuse(format!("`prompt_embeds` is [batch, tokens, hidden_size], got {:?}", embeds.size()));
        }
        if self.negative_prompt.is_some() && self.negative_prompt_embeds.is_some() {
            return refuse("give either `negative_prompt` or `negative_prompt_embeds`, not both".into());
        }
        if let (Some(embeds), Some(negative)) = (&self.prompt_embeds, &self.negative_prompt_embeds)
            && embeds.size() != negative.size()
        {
            let (embeds, negative) = (embeds.size(), negative.size());
            return refuse(format!("`prompt_embeds` is {embeds:?}, but `negative_prompt_embeds` is {negative:?}"));
        }
        match (&self.prompt, &self.negative_prompt) {
            (Some(Prompt::One(_)), Some(Prompt::Many(_))) | (Some(Prompt::Many(_)), Some(Prompt::One(_))) => {
                refuse("`negative_prompt` has to be a text where `prompt` is one, and a list where it is a list".into())
            }
            (_, Some(negative)) if negative.texts().len() as i64 != self.prompts() => {
                refuse(format!("there are {} negative prompts for {} prompts", negative.texts().len(), self.prompts()))
            }
            _ => Ok(()),
        }
    }

    /// What the UNet is given: the prompts' embeddings, and before them, with guidance, the negative prompts'.
    pub(super) fn embeds(&self, pipe: &StableDiffusionPipeline) -> Result<Tensor> {
        let images = self.num_images_per_prompt;
        let prompt_embeds = match (&self.prompt, &self.prompt_embeds) {
            (Some(prompt), None) => pipe.encode_prompt(&prompt.texts(), images, self.clip_skip)?,
            (None, Some(embeds)) => repeat_for_images(&embeds.f_to_kind(pipe.text_encoder_kind())?, images)?,
            _ => return Err(Error::Argument("give either a prompt or its embeddings, not both".into())),
        };
        if !pipe.guides(self.guidance_scale) {
            return Ok(prompt_embeds);
        }
        let negative = match (&self.negative_prompt_embeds, &self.negative_prompt) {
            (Some(embeds), _) => repeat_for_images(&embeds.f_to_kind(prompt_embeds.kind())?, images)?,
            (None, Some(negative)) => pipe.encode_prompt(&negative.texts(), images, None)?,
            (None, None) => pipe.encode_prompt(&vec![""; self.prompts() as usize], images, None)?,
        };
        Ok(Tensor::f_cat(&[negative, prompt_embeds], 0)?)
    }
}
