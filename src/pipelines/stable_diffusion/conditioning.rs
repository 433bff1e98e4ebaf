//! What inpainting puts into each step of the denoising.

use crate::error::Result;
use crate::schedulers::Scheduler;
use crate::torch::NumberExt;
use tch::Tensor;

/// What goes into each step beside latents and prompts.
#[derive(Debug)]
pub(super) enum Conditioning {
    /// Nothing.
    None,
    /// The UNet sees the mask and the masked picture as further channels.
    Channels { mask: Tensor, masked_image_latents: Tensor },
    /// The picture takes its place again where the mask is black, with as much noise as the next step expects.
    Blend { mask: Tensor, image_latents: Tensor, noise: Tensor },
}

impl Conditioning {
    /// The UNet's input for `latents`, which with guidance are there twice.
    pub(super) fn beside(&self, latents: Tensor, guides: bool) -> Result<Tensor> {
        let Self::Channels { mask, masked_image_latents } = self else { return Ok(latents) };
        if !guides {
            return Ok(Tensor::f_cat(&[&latents, mask, masked_image_latents], 1)?);
        }
        let twice = |tensor: &Tensor| Tensor::f_cat(&[tensor, tensor], 0);
        Ok(Tensor::f_cat(&[latents, twice(mask)?, twice(masked_image_latents)?], 1)?)
    }

    /// The latents after a step; `next` is the timestep that follows, if any does.
    pub(super) fn blend(&self, latents: Tensor, scheduler: &dyn Scheduler, next: Option<f64>) -> Result<Tensor> {
        let Self::Blend { mask, image_latents, noise } = self else { return Ok(latents) };
        let noised = next.map(|timestep| scheduler.add_noise(image_latents, noise, &[timestep])).transpose()?;
        let kept = mask.subtracted_from(1.0)?.f_mul(noised.as_ref().unwrap_or(image_latents))?;
        Ok(kept.f_add(&mask.f_mul(&latents)?)?)
    }

    /// The mask, one for each picture, for callbacks.
    pub(super) fn mask(&self) -> Option<Tensor> {
        match self {
            Self::None => None,
            Self::Channels { mask, .. } | Self::Blend { mask, .. } => Some(mask.shallow_clone()),
        }
    }

    /// The masked picture's latents, for callbacks.
    pub(super) fn masked_image_latents(&self) -> Option<Tensor> {
        match self {
            Self::Channels { masked_image_latents, .. } => Some(masked_image_latents.shallow_clone()),
            Self::None | Self::Blend { .. } => None,
        }
    }

    /// Takes what a callback leaves.
    pub(super) fn replace(&mut self, new_mask: Option<Tensor>, new_latents: Option<Tensor>) {
        match (self, new_mask) {
            (Self::Channels { mask, masked_image_latents }, Some(new_mask)) => {
                *mask = new_mask;
                if let Some(latents) = new_latents {
                    *masked_image_latents = latents;
                }
            }
            (Self::Blend { mask, .. }, Some(new_mask)) => *mask = new_mask,
            _ => (),
        }
    }
}
