//! The denoising loop.

use super::StableDiffusionXLPipeline;
use crate::error::{Error, Result};
use crate::models::unets::{AddedCond, UNetInputs};
use crate::pipelines::PooledPromptEmbeds;
use crate::pipelines::guidance::{get_guidance_scale_embedding, guide, rescale_noise_cfg};
use crate::schedulers::StepOptions;
use crate::torch::Generator;
use tch::{Kind, Tensor};

/// What a callback sees at the end of a step, and may change.
#[derive(Debug)]
pub struct StableDiffusionXLStepEnd {
    /// The step's number, from 0.
    pub step: usize,
    /// The timestep that was just done.
    pub timestep: f64,
    /// The latents after the step, `[batch, channels, height, width]`.
    pub latents: Tensor,
    /// The embeddings that the UNet is given; with guidance, those of the negative prompts come first.
    pub embeds: PooledPromptEmbeds,
    /// Sizes and crops, and for a refiner an aesthetic score, `[batch, numbers]`; with guidance twice as many rows.
    pub add_time_ids: Tensor,
    /// How much the prompt counts. Set to 0 or 1 for no guidance from here on, and halve `embeds` and `add_time_ids`.
    pub guidance_scale: f64,
    /// Set it to leave out the steps that remain.
    pub interrupt: bool,
}

pub(super) type Callback<'a> = Box<dyn FnMut(&mut StableDiffusionXLStepEnd) -> Result<()> + 'a>;

/// The denoising loop's own arguments.
pub(super) struct Denoise<'a> {
    pub(super) embeds: PooledPromptEmbeds,
    pub(super) add_time_ids: Tensor,
    pub(super) guidance_scale: f64,
    pub(super) guidance_rescale: f64,
    pub(super) eta: f64,
    pub(super) timesteps: Vec<f64>,
    pub(super) callback: Option<Callback<'a>>,
}

impl StableDiffusionXLPipeline {
    /// Whether a guidance scale takes two predictions a step. A UNet distilled to take the scale as an input needs one.
    pub(super) fn guides(&self, guidance_scale: f64) -> bool {
        guidance_scale > 1.0 && self.unet.config().time_cond_proj_dim.is_none()
    }
}

impl Denoise<'_> {
    /// From noise, or latents with noise, to latents of a picture.
    pub(super) fn run(
        mut self,
        pipe: &mut StableDiffusionXLPipeline,
        mut latents: Tensor,
        generators: &mut [Generator],
    ) -> Result<Tensor> {
        let timestep_cond = self.timestep_cond(pipe, &latents)?;
        // One copy for all steps: a step that sends the device a number waits for it.
        let times = Tensor::f_from_slice(&self.timesteps)?.f_to_kind(Kind::Float)?.f_to_device(latents.device())?;
        let order = pipe.scheduler.order();
        let bar = pipe.progress_bar.start(self.timesteps.len().div_ceil(order) as u64, "denoising");
        for (step, &timestep) in self.timesteps.iter().enumerate() {
            let guides = pipe.guides(self.guidance_scale);
            let input = if guides { Tensor::f_cat(&[&latents, &latents], 0)? } else { latents.shallow_clone() };
            let input = pipe.scheduler.scale_model_input(&input, timestep)?;
            let time = times.f_narrow(0, step as i64, 1)?;
            let (text_embeds, time_ids) = (&self.embeds.pooled_prompt_embeds, &self.add_time_ids);
            let mut inputs = UNetInputs::new(&input, &time, &self.embeds.prompt_embeds);
            inputs.timestep_cond = timestep_cond.as_ref();
            inputs.added_cond = Some(AddedCond { text_embeds, time_ids });
            let mut noise_pred = pipe.unet.forward(&inputs).map_err(|error| error.within("unet"))?;
            if guides {
                let (guided, text) = guide(&noise_pred, self.guidance_scale)?;
                noise_pred = match self.guidance_rescale {
                    rescale if rescale > 0.0 => rescale_noise_cfg(&guided, &text, rescale)?,
                    _ => guided,
                };
            }
            let options = StepOptions { eta: self.eta, generators, ..StepOptions::default() };
            latents = pipe.scheduler.step(&noise_pred, timestep, &latents, options)?.prev_sample;
            if let Some(callback) = &mut self.callback {
                let mut end = StableDiffusionXLStepEnd {
                    step,
                    timestep,
                    latents,
                    embeds: self.embeds,
                    add_time_ids: self.add_time_ids,
                    guidance_scale: self.guidance_scale,
                    interrupt: false,
                };
                callback(&mut end)?;
                let interrupt = end.interrupt;
                StableDiffusionXLStepEnd {
                    latents,
                    embeds: self.embeds,
                    add_time_ids: self.add_time_ids,
                    guidance_scale: self.guidance_scale,
                    ..
                } = end;
                if interrupt {
                    break;
                }
            }
            // The last step of a scheduler of order 2 is one of order 1.
            if step + 1 == self.timesteps.len() || (step + 1) % order == 0 {
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(latents)
    }

    /// The guidance scale as an embedding, for a UNet that takes it as an input.
    fn timestep_cond(&self, pipe: &StableDiffusionXLPipeline, latents: &Tensor) -> Result<Option<Tensor>> {
        let embed = |dim| {
            let batch = latents.size().first().copied().unwrap_or(1);
            let embedding = get_guidance_scale_embedding(self.guidance_scale, batch, dim)?;
            Ok::<_, Error>(embedding.f_to_device(latents.device())?.f_to_kind(latents.kind())?)
        };
        pipe.unet.config().time_cond_proj_dim.map(embed).transpose()
    }
}
