//! Prompts as FLUX.1 sees them: CLIP's embedding of the whole, and T5's of each token.

use super::FluxPipeline;
use crate::error::{Error, Result};
use crate::nn::Module;
use crate::pipelines::PooledPromptEmbeds;
use crate::pipelines::pipeline_utils::repeat_for_images;
use tch::{Kind, Tensor};

/// How many tokens CLIP takes where its tokenizer does not say.
const CLIP_LENGTH: usize = 77;

impl FluxPipeline {
    /// The embeddings of prompts, each repeated `num_images_per_prompt` times: CLIP reads `prompts`, T5 `prompts_2`.
    ///
    /// A prompt longer than CLIP or `max_sequence_length` takes is cut, with a warning that quotes what was cut.
    ///
    /// # Errors
    /// [`Error::Argument`] if a text encoder or a tokenizer was left out; if the text cannot be tokenized, or a text encoder
    /// fails.
    pub fn encode_prompt(
        &self,
        prompts: &[&str],
        prompts_2: &[&str],
        num_images_per_prompt: i64,
        max_sequence_length: usize,
    ) -> Result<PooledPromptEmbeds> {
        let pooled_prompt_embeds = repeat_for_images(&self.clip_embeds(prompts)?, num_images_per_prompt)?;
        let prompt_embeds = repeat_for_images(&self.t5_embeds(prompts_2, max_sequence_length)?, num_images_per_prompt)?;
        Ok(PooledPromptEmbeds { prompt_embeds, pooled_prompt_embeds })
    }

    /// The dtype of the tokens' places.
    pub(super) fn text_kind(&self) -> Kind {
        self.text_encoder.as_ref().map_or(self.transformer.dtype(), |text_encoder| text_encoder.node().dtype())
    }

    fn clip_embeds(&self, prompts: &[&str]) -> Result<Tensor> {
        let (Some(text_encoder), Some(tokenizer)) = (&self.text_encoder, &self.tokenizer) else {
            return Err(left_out("text_encoder", "tokenizer"));
        };
        let max_length = tokenizer.model_max_length().unwrap_or(CLIP_LENGTH);
        let tokens = tokenizer.encode_batch(prompts, max_length)?;
        if let Some(removed) = &tokens.removed_text {
            tracing::warn!("CLIP takes at most {max_length} tokens, so this part of the prompt was cut: {removed:?}");
        }
        let node = text_encoder.node();
        let output = text_encoder.forward(&tokens.input_ids.f_to_device(node.execution_device())?, None, false);
        let pooled = output.map_err(|error| error.within("text_encoder"))?.pooler_output;
        Ok(pooled.f_to_device(self.device())?.f_to_kind(node.dtype())?)
    }

    fn t5_embeds(&self, prompts: &[&str], max_length: usize) -> Result<Tensor> {
        let (Some(text_encoder_2), Some(tokenizer_2)) = (&self.text_encoder_2, &self.tokenizer_2) else {
            return Err(left_out("text_encoder_2", "tokenizer_2"));
        };
        let tokens = tokenizer_2.encode_batch(prompts, max_length)?;
        if let Some(removed) = &tokens.removed_text {
            tracing::warn!(
                "`max_sequence_length` is {max_length} tokens, so this part of the prompt was cut: {removed:?}"
            );
        }
        let node = text_encoder_2.node();
        let embeds = text_encoder_2.forward(&tokens.input_ids.f_to_device(node.execution_device())?, None);
        let embeds = embeds.map_err(|error| error.within("text_encoder_2"))?;
        Ok(embeds.f_to_device(self.device())?.f_to_kind(node.dtype())?)
    }
}

fn left_out(text_encoder: &str, tokenizer: &str) -> Error {
    Error::Argument(format!(
        "this pipeline has no `{text_encoder}` and `{tokenizer}`: give embeddings in place of texts"
    ))
}
