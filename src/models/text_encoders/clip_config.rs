//! `config.json` of CLIP's text models.
//!
//! Mirrors `CLIPTextConfig` of `transformers/models/clip/configuration_clip.py` at 5.23.

use super::clip_encoder::CLIPLayerConfig;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::nn::Activation;
use serde::{Deserialize, Serialize};

/// What a CLIP text model is built from, under transformers' names and with its defaults (OpenAI's ViT-B/32).
///
/// Keys that have no meaning for inference (`attention_dropout`, `initializer_range` ...) are kept in `other`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CLIPTextConfig {
    /// Rows of the token table; 49408 by default.
    pub vocab_size: i64,
    /// Width of the hidden states; 512 by default.
    pub hidden_size: i64,
    /// Width inside the MLP; 2048 by default.
    pub intermediate_size: i64,
    /// Width of `text_embeds` in [`CLIPTextModelWithProjection`](super::CLIPTextModelWithProjection); 512 by default.
    pub projection_dim: Option<i64>,
    /// Number of layers; 12 by default.
    pub num_hidden_layers: i64,
    /// Number of attention heads; 8 by default.
    pub num_attention_heads: i64,
    /// The longest sequence, in tokens; 77 by default.
    pub max_position_embeddings: i64,
    /// Name of the MLP's non-linearity; `quick_gelu` by default.
    pub hidden_act: String,
    /// Added to the variance in each norm; 1e-5 by default.
    pub layer_norm_eps: f64,
    /// The id that fills up short sequences; 1 by default. Nothing reads it: the tokenizer has its own.
    pub pad_token_id: Option<i64>,
    /// The id that begins a sequence; 49406 by default.
    pub bos_token_id: Option<i64>,
    /// The id whose first position is pooled; 49407 by default. 2 stands for the position of the largest id, since
    /// checkpoints from before transformers 4.31 (SD 1.5's, SDXL's) hold a wrong 2 here.
    pub eos_token_id: Option<i64>,
    /// Whether diffusers' pipelines hand the tokenizer's attention mask to the model; false by default.
    pub use_attention_mask: bool,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for CLIPTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: Some(512),
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            pad_token_id: Some(1),
            bos_token_id: Some(49406),
            eos_token_id: Some(49407),
            use_attention_mask: false,
            other: ConfigMap::new(),
        }
    }
}

impl CLIPTextConfig {
    /// What each layer is built from.
    pub(super) fn layer(&self) -> Result<CLIPLayerConfig> {
        Ok(CLIPLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            activation: self.activation()?,
            layer_norm_eps: self.layer_norm_eps,
        })
    }

    pub(crate) fn activation(&self) -> Result<Activation> {
        self.hidden_act.parse().map_err(|error| Error::Unsupported(format!("`hidden_act`: {error}")))
    }

    pub(super) fn eos(&self) -> Result<i64> {
        self.eos_token_id.ok_or_else(|| Error::Config("`eos_token_id` is null: no position could be pooled".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_stable_diffusion_1_5_is_read() {
        let config: CLIPTextConfig = serde_json::from_str(
            r#"{
                "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
                "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
                "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
                "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
                "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
                "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "vocab_size": 49408
            }"#,
        )
        .unwrap();
        assert_eq!(
            (config.hidden_size, config.layer().unwrap().head_dim().unwrap(), config.eos().unwrap()),
            (768, 64, 2)
        );
        assert_eq!(config.activation().unwrap(), Activation::QuickGelu);
        assert!(!config.use_attention_mask);
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let config = CLIPTextConfig { num_attention_heads: 7, ..CLIPTextConfig::default() };
        let error = config.layer().unwrap().head_dim().unwrap_err();
        assert_eq!(error.to_string(), "`hidden_size` 512 is no multiple of 7 attention heads");
        assert!(matches!(error, Error::Config(_)));
    }
}
