//! Prompts as SDXL sees them: the states of two text encoders side by side, and the second one's pooled embedding.

use super::StableDiffusionXLPipeline;
use crate::error::{Error, Result};
use crate::models::text_encoders::{CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer};
use crate::nn::Module;
use crate::pipelines::PooledPromptEmbeds;
use tch::{Kind, Tensor};

/// How many tokens CLIP takes where its tokenizer does not say.
const CLIP_LENGTH: usize = 77;

impl StableDiffusionXLPipeline {
    /// The embeddings of prompts: the first text encoder reads `prompts`, the second one `prompts_2`, or `prompts` where
    /// it is the only one. The states are those before the last layer, or before `clip_skip` more.
    ///
    /// A prompt longer than CLIP takes is cut, with a warning that quotes what was cut.
    ///
    /// # Errors
    /// [`Error::Argument`] if the second text encoder was left out, or has too few layers; if the text cannot be tokenized,
    /// or a text encoder fails.
    pub fn encode_prompt(
        &self,
        prompts: &[&str],
        prompts_2: &[&str],
        clip_skip: Option<usize>,
    ) -> Result<PooledPromptEmbeds> {
        let (Some(text_encoder_2), Some(tokenizer_2)) = (&self.text_encoder_2, &self.tokenizer_2) else {
            let text = "this pipeline has no `text_encoder_2` and `tokenizer_2`: give embeddings in place of texts";
            return Err(Error::Argument(text.into()));
        };
        let skipped = clip_skip.unwrap_or_default().saturating_add(1);
        let device = self.device();
        let first = match (&self.text_encoder, &self.tokenizer) {
            (Some(text_encoder), Some(tokenizer)) => Some(states(text_encoder, tokenizer, prompts, skipped)?),
            _ => None,
        };
        let prompts_2 = if first.is_some() { prompts_2 } else { prompts };
        let (second, pooled) = states_and_pooled(text_encoder_2, tokenizer_2, prompts_2, skipped)?;
        let second = second.f_to_device(device)?;
        let prompt_embeds = match first {
            Some(first) => Tensor::f_cat(&[first.f_to_device(device)?, second], -1)?,
            None => second,
        };
        Ok(PooledPromptEmbeds {
            prompt_embeds: prompt_embeds.f_to_kind(self.text_kind())?,
            pooled_prompt_embeds: pooled.f_to_device(device)?,
        })
    }

    /// The dtype of embeddings, and of latents.
    pub(super) fn text_kind(&self) -> Kind {
        self.text_encoder_2.as_ref().map_or(self.unet.dtype(), |text_encoder| text_encoder.node().dtype())
    }
}

fn tokens(tokenizer: &CLIPTokenizer, prompts: &[&str], model: &impl Module) -> Result<Tensor> {
    let max_length = tokenizer.model_max_length().unwrap_or(CLIP_LENGTH);
    let tokens = tokenizer.encode_batch(prompts, max_length)?;
    if let Some(removed) = &tokens.removed_text {
        tracing::warn!("CLIP takes at most {max_length} tokens, so this part of the prompt was cut: {removed:?}");
    }
    Ok(tokens.input_ids.f_to_device(model.node().execution_device())?)
}

fn states(model: &CLIPTextModel, tokenizer: &CLIPTokenizer, prompts: &[&str], skipped: usize) -> Result<Tensor> {
    let input_ids = tokens(tokenizer, prompts, model)?;
    model.hidden_state(&input_ids, None, skipped).map_err(|error| error.within("text_encoder"))
}

fn states_and_pooled(
    model: &CLIPTextModelWithProjection,
    tokenizer: &CLIPTokenizer,
    prompts: &[&str],
    skipped: usize,
) -> Result<(Tensor, Tensor)> {
    let input_ids = tokens(tokenizer, prompts, model)?;
    let output = model.forward(&input_ids, None, true).map_err(|error| error.within("text_encoder_2"))?;
    let states = output.hidden_states.unwrap_or_default();
    let layers = states.len().saturating_sub(1);
    let state = layers.checked_sub(skipped).and_then(|layer| states.into_iter().nth(layer)).ok_or_else(|| {
        Error::Argument(format!(
            "`clip_skip` and the last layer are {skipped}, but `text_encoder_2` has {layers} layers"
        ))
    })?;
    Ok((state, output.text_embeds))
}
