//! Pictures to latents and back, with a VAE that computes in float32 where float16 is too narrow for it.

use super::StableDiffusionXLPipeline;
use crate::error::Result;
use crate::hooks::ComputesIn;
use crate::models::ModelMixin;
use crate::nn::Module;
use crate::pipelines::image_latents::sample_latents;
use crate::torch::{Generator, NumberExt};
use tch::{Kind, Tensor};

impl StableDiffusionXLPipeline {
    /// Latents of pictures with values in [-1, 1], as the UNet knows them, in `kind`.
    pub(super) fn encode_image(&self, image: &Tensor, kind: Kind, generators: &mut [Generator]) -> Result<Tensor> {
        let upcasts = self.vae.config().force_upcast;
        let latents = self.with_vae_in_float32(upcasts, || {
            let image = if upcasts { image.f_to_kind(Kind::Float)? } else { image.shallow_clone() };
            sample_latents(&self.vae, &image, generators)
        })?;
        let (latents, scale) = (latents.f_to_kind(kind)?, self.vae.config().scaling_factor);
        match self.latents_statistics(&latents)? {
            Some((mean, std)) => Ok(latents.f_sub(&mean)?.times(scale)?.f_div(&std)?),
            None => latents.times(scale),
        }
    }

    /// Latents to pictures with values in [-1, 1].
    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let upcasts = self.vae.config().force_upcast && self.vae.node().dtype() == Kind::Half;
        self.with_vae_in_float32(upcasts, || {
            let latents = if upcasts { latents.f_to_kind(Kind::Float)? } else { latents.shallow_clone() };
            let scale = self.vae.config().scaling_factor;
            let latents = match self.latents_statistics(&latents)? {
                Some((mean, std)) => latents.f_mul(&std)?.over(scale)?.f_add(&mean)?,
                None => latents.over(scale)?,
            };
            let latents = latents.f_to_device(self.vae.node().execution_device())?;
            self.vae.decode(&latents).map_err(|error| error.within("vae"))
        })
    }

    /// Does `work` with the VAE in float32, where that is asked for, and casts it back whatever comes of it. One whose
    /// weights come and go is cast layer by layer.
    fn with_vae_in_float32(&self, upcasts: bool, work: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let kind = self.vae.node().dtype();
        if !upcasts || kind == Kind::Float {
            return work();
        }
        if self.vae.node().walk().iter().any(|node| !node.hook_names().is_empty()) {
            let _in_float32 = ComputesIn::new(self.vae.node(), Kind::Float);
            return work();
        }
        self.vae.to(Kind::Float).map_err(|error| error.within("vae"))?;
        let output = work();
        self.vae.to(kind).map_err(|error| error.within("vae"))?;
        output
    }

    /// The mean and the spread of each channel, where the VAE knows them, to be reckoned with `latents`.
    fn latents_statistics(&self, latents: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let config = self.vae.config();
        let (Some(mean), Some(std)) = (&config.latents_mean, &config.latents_std) else { return Ok(None) };
        let channels = |values: &[f64]| -> Result<Tensor> {
            let values = Tensor::f_from_slice(values)?.f_to_kind(Kind::Float)?.f_view([1, -1, 1, 1])?;
            Ok(values.f_to_device(latents.device())?.f_to_kind(latents.f_kind()?)?)
        };
        Ok(Some((channels(mean)?, channels(std)?)))
    }
}
