//! The denoising loop.

use super::arguments::Text;
use super::pipeline_flux::FluxPipeline;
use crate::error::Result;
use crate::models::transformers::FluxInputs;
use crate::schedulers::StepOptions;
use crate::torch::Generator;
use tch::{Kind, Tensor};

/// What a callback sees at the end of a step, and may change.
#[derive(Debug)]
pub struct FluxStepEnd {
    /// The step's number, from 0.
    pub step: usize,
    /// The timestep that was just done.
    pub timestep: f64,
    /// The latents after the step, `[batch, tokens, channels]`.
    pub latents: Tensor,
    /// The embeddings of the prompts, `[batch, tokens, d_model]`.
    pub prompt_embeds: Tensor,
    /// Set it to leave out the steps that remain.
    pub interrupt: bool,
}

pub(super) type Callback<'a> = Box<dyn FnMut(&mut FluxStepEnd) -> Result<()> + 'a>;

/// The denoising loop's own arguments.
pub(super) struct Denoise<'a> {
    pub(super) text: Text,
    /// The text to draw away from, and how far: true classifier-free guidance.
    pub(super) negative: Option<(Text, f64)>,
    /// The places of the picture's tokens.
    pub(super) image_ids: Tensor,
    pub(super) guidance_scale: f64,
    pub(super) callback: Option<Callback<'a>>,
}

impl Denoise<'_> {
    /// From noise to latents of a picture, `[batch, tokens, channels]` both.
    pub(super) fn run(
        mut self,
        pipe: &mut FluxPipeline,
        mut latents: Tensor,
        generators: &mut [Generator],
    ) -> Result<Tensor> {
        let (batch, ..) = latents.size3()?;
        let (kind, device) = (latents.f_kind()?, latents.device());
        let guidance = match pipe.transformer.config().guidance_embeds {
            true => Some(Tensor::f_full([1], self.guidance_scale, (Kind::Float, device))?.f_expand([batch], false)?),
            false => None,
        };
        let timesteps = pipe.scheduler.timesteps().to_vec();
        // One copy for all steps: a step that sends the device a number waits for it.
        let times = Tensor::f_from_slice(&timesteps)?.f_to_kind(Kind::Float)?.f_to_kind(kind)?.f_to_device(device)?;
        let bar = pipe.progress_bar.start(timesteps.len() as u64, "denoising");
        for (step, &timestep) in timesteps.iter().enumerate() {
            let time = times.f_narrow(0, step as i64, 1)?.f_expand([batch], false)?.f_div_scalar(1000.0)?;
            let predict = |text: &Text| {
                let inputs = FluxInputs {
                    hidden_states: &latents,
                    encoder_hidden_states: &text.prompt_embeds,
                    pooled_projections: &text.pooled,
                    timestep: &time,
                    img_ids: &self.image_ids,
                    txt_ids: &text.ids,
                    guidance: guidance.as_ref(),
                };
                pipe.transformer.forward(&inputs).map_err(|error| error.within("transformer"))
            };
            let mut velocity = predict(&self.text)?;
            if let Some((negative, scale)) = &self.negative {
                let away = predict(negative)?;
                velocity = away.f_add(&velocity.f_sub(&away)?.f_mul_scalar(*scale)?)?;
            }
            // Differs from diffusers: there, the fresh noise of stochastic sampling is the global generator's.
            let options = StepOptions { generators, ..StepOptions::default() };
            latents = pipe.scheduler.step(&velocity, timestep, &latents, options)?.prev_sample;
            if let Some(callback) = &mut self.callback {
                let prompt_embeds = self.text.prompt_embeds.shallow_clone();
                let mut end = FluxStepEnd { step, timestep, latents, prompt_embeds, interrupt: false };
                callback(&mut end)?;
                let interrupt = end.interrupt;
                FluxStepEnd { latents, prompt_embeds: self.text.prompt_embeds, .. } = end;
                if interrupt {
                    break;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(latents)
    }
}
