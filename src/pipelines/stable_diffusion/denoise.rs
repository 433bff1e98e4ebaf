//! The denoising loop.

use super::StableDiffusionPipeline;
use super::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::models::unets::UNetInputs;
use crate::nn::Module;
use crate::pipelines::guidance::{get_guidance_scale_embedding, guide, rescale_noise_cfg};
use crate::schedulers::StepOptions;
use crate::torch::Generator;
use tch::{Kind, Tensor};

/// What a callback sees at the end of a step, and may change.
#[derive(Debug)]
pub struct StepEnd {
    /// The step's number, from 0.
    pub step: usize,
    /// The timestep that was just done.
    pub timestep: f64,
    /// The latents after the step, `[batch, channels, height, width]`.
    pub latents: Tensor,
    /// The embeddings that the UNet is given; with guidance, those of the negative prompts come first.
    pub prompt_embeds: Tensor,
    /// Inpainting's mask, `[batch, 1, height, width]`: 1 where it is painted.
    // Differs from diffusers: there, with guidance, the mask and the masked latents come twice.
    pub mask: Option<Tensor>,
    /// The latents of inpainting's masked picture, for a UNet that sees them.
    pub masked_image_latents: Option<Tensor>,
    /// How much the prompt counts. Set to 0 or 1 for no guidance from here on, and halve `prompt_embeds`.
    pub guidance_scale: f64,
    /// Set it to leave out the steps that remain.
    pub interrupt: bool,
}

pub(super) type Callback<'a> = Box<dyn FnMut(&mut StepEnd) -> Result<()> + 'a>;

impl StableDiffusionPipeline {
    /// Whether a guidance scale takes two predictions a step. A UNet distilled to take the scale as an input needs one.
    pub(super) fn guides(&self, guidance_scale: f64) -> bool {
        guidance_scale > 1.0 && self.unet.config().time_cond_proj_dim.is_none()
    }

    pub(super) fn text_encoder_kind(&self) -> Kind {
        self.text_encoder.node().dtype()
    }
}

/// The denoising loop's own arguments.
pub(super) struct Denoise<'a> {
    pub(super) eta: f64,
    pub(super) guidance_rescale: f64,
    pub(super) callback: Option<Callback<'a>>,
    /// The first of the run's timesteps that is walked.
    pub(super) first: usize,
    pub(super) conditioning: Conditioning,
}

impl Denoise<'_> {
    /// From noise, or latents with noise, to latents of a picture.
    pub(super) fn run(
        mut self,
        pipe: &mut StableDiffusionPipeline,
        mut latents: Tensor,
        mut prompt_embeds: Tensor,
        mut guidance_scale: f64,
        generators: &mut [Generator],
    ) -> Result<Tensor> {
        let timestep_cond = pipe.unet.config().time_cond_proj_dim.map(|dim| {
            let batch = latents.size().first().copied().unwrap_or(1);
            Ok::<_, Error>(
                get_guidance_scale_embedding(guidance_scale, batch, dim)?
                    .f_to_device(latents.device())?
                    .f_to_kind(latents.kind())?,
            )
        });
        let timestep_cond = timestep_cond.transpose()?;
        let timesteps = pipe.scheduler.timesteps().get(self.first..).unwrap_or_default().to_vec();
        // One copy for all steps: a step that sends the device a number waits for it.
        let times = Tensor::f_from_slice(&timesteps)?.f_to_kind(Kind::Float)?.f_to_device(latents.device())?;
        let bar = pipe.progress_bar.start(timesteps.len().div_ceil(pipe.scheduler.order()) as u64, "denoising");
        for (step, &timestep) in timesteps.iter().enumerate() {
            let guides = pipe.guides(guidance_scale);
            let input = if guides { Tensor::f_cat(&[&latents, &latents], 0)? } else { latents.shallow_clone() };
            let input = pipe.scheduler.scale_model_input(&input, timestep)?;
            let input = self.conditioning.beside(input, guides)?;
            let time = times.f_narrow(0, step as i64, 1)?;
            let mut inputs = UNetInputs::new(&input, &time, &prompt_embeds);
            inputs.timestep_cond = timestep_cond.as_ref();
            let mut noise_pred = pipe.unet.forward(&inputs).map_err(|error| error.within("unet"))?;
            if guides {
                let (guided, text) = guide(&noise_pred, guidance_scale)?;
                noise_pred = match self.guidance_rescale {
                    rescale if rescale > 0.0 => rescale_noise_cfg(&guided, &text, rescale)?,
                    _ => guided,
                };
            }
            let options = StepOptions { eta: self.eta, generators, ..StepOptions::default() };
            latents = pipe.scheduler.step(&noise_pred, timestep, &latents, options)?.prev_sample;
            latents = self.conditioning.blend(latents, &*pipe.scheduler, timesteps.get(step + 1).copied())?;
            if let Some(callback) = &mut self.callback {
                let conditioning = &mut self.conditioning;
                let (mask, masked_image_latents) = (conditioning.mask(), conditioning.masked_image_latents());
                let interrupt = false;
                let mut end = StepEnd {
                    step,
                    timestep,
                    latents,
                    prompt_embeds,
                    mask,
                    masked_image_latents,
                    guidance_scale,
                    interrupt,
                };
                callback(&mut end)?;
                let interrupt = end.interrupt;
                conditioning.replace(end.mask, end.masked_image_latents);
                StepEnd { latents, prompt_embeds, guidance_scale, .. } = end;
                if interrupt {
                    break;
                }
            }
            // The last step of a scheduler of order 2 is one of order 1.
            if step + 1 == timesteps.len() || (step + 1) % pipe.scheduler.order() == 0 {
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(latents)
    }
}
