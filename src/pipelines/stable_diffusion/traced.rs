//! Traced models in the place of the pipeline's text encoder and of its VAE's decoder.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::models::To;
use crate::models::traced::TracedModel;
use crate::nn::Module;
use crate::torch::TracedModule;
use tch::Tensor;

/// What runs instead of the pipeline's own models, as far as there is any.
#[derive(Debug, Default)]
pub(super) struct Traced {
    text_encoder: Option<TracedModel>,
    vae_decoder: Option<TracedModel>,
}

impl Traced {
    fn modules(&self) -> impl Iterator<Item = &TracedModule> {
        [&self.text_encoder, &self.vae_decoder].into_iter().flatten().map(TracedModel::module)
    }

    pub(super) fn encodes_prompts(&self) -> bool {
        self.text_encoder.is_some()
    }

    pub(super) fn move_to(&self, target: To) -> Result<()> {
        self.modules().try_for_each(|module| match target {
            To::Device(device) if module.device()?.is_some_and(|own| own != device) => module.to_device(device),
            To::Kind(kind) if module.dtype()?.is_some_and(|own| own != kind) => module.to_kind(kind),
            To::MemoryFormat(format) if module.device()?.is_some() => module.to_memory_format(format),
            _ => Ok(()),
        })
    }
}

impl StableDiffusionPipeline {
    /// Has `traced` encode the prompts, or with `None` the pipeline's own text encoder again, which keeps the configuration.
    ///
    /// The traced one takes `input_ids` alone: no attention mask, and no `clip_skip`.
    pub fn set_traced_text_encoder(&mut self, traced: Option<TracedModel>) {
        self.traced.text_encoder = traced;
    }

    /// Has `traced` decode the latents, or with `None` the pipeline's own VAE again, which keeps the configuration. Slices
    /// and tiles are the VAE's own and do not reach the traced one.
    pub fn set_traced_vae_decoder(&mut self, traced: Option<TracedModel>) {
        self.traced.vae_decoder = traced;
    }

    /// The embeddings of tokens, without some of the last layers.
    pub(super) fn embed(
        &self,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        clip_skip: Option<usize>,
    ) -> Result<Tensor> {
        let embeds = match (&self.traced.text_encoder, clip_skip) {
            (Some(traced), None) if attention_mask.is_none() => traced.forward(input_ids),
            (Some(_), _) => {
                Err(Error::Unsupported("a traced text encoder takes neither an attention mask nor `clip_skip`".into()))
            }
            (None, None) => {
                self.text_encoder.forward(input_ids, attention_mask, false).map(|output| output.last_hidden_state)
            }
            (None, Some(skipped)) => self.text_encoder.clip_skip(input_ids, attention_mask, skipped),
        };
        embeds.map_err(|error| error.within("text_encoder"))
    }

    /// The picture of latents.
    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.traced.vae_decoder {
            Some(traced) => traced.forward(latents),
            None => self.vae.decode(latents),
        }
        .map_err(|error| error.within("vae"))
    }

    /// The device that token numbers are to be on.
    pub(super) fn text_encoder_device(&self) -> Result<tch::Device> {
        let own = || self.text_encoder.node().execution_device();
        let traced = self.traced.text_encoder.as_ref().map(|traced| traced.module().device());
        Ok(traced.transpose()?.flatten().unwrap_or_else(own))
    }
}
