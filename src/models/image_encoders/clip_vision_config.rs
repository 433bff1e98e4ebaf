//! `config.json` of CLIP's vision model.
//!
//! Mirrors `CLIPVisionConfig` of `transformers/models/clip/configuration_clip.py` at 5.23.

use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::models::text_encoders::CLIPLayerConfig;
use serde::{Deserialize, Serialize};

/// What a CLIP vision model is built from, under transformers' names and with its defaults (OpenAI's ViT-B/32).
///
/// Keys that have no meaning for inference (`attention_dropout`, `initializer_range` ...) are kept in `other`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CLIPVisionConfig {
    /// Width of the hidden states; 768 by default.
    pub hidden_size: i64,
    /// Width inside the MLP; 3072 by default.
    pub intermediate_size: i64,
    /// Width of the embeddings that a projection makes of the pooled state; 512 by default. The model itself has none.
    pub projection_dim: i64,
    /// Number of layers; 12 by default.
    pub num_hidden_layers: i64,
    /// Number of attention heads; 12 by default.
    pub num_attention_heads: i64,
    /// Channels of a picture; 3 by default.
    pub num_channels: i64,
    /// Height and width of a picture, in pixels; 224 by default.
    pub image_size: i64,
    /// Height and width of a patch, in pixels; 32 by default.
    pub patch_size: i64,
    /// Name of the MLP's non-linearity; `quick_gelu` by default.
    pub hidden_act: String,
    /// Added to the variance in each norm; 1e-5 by default.
    pub layer_norm_eps: f64,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for CLIPVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            other: ConfigMap::new(),
        }
    }
}

impl CLIPVisionConfig {
    /// What each layer is built from.
    pub(super) fn layer(&self) -> Result<CLIPLayerConfig> {
        Ok(CLIPLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            activation: self.hidden_act.parse()?,
            layer_norm_eps: self.layer_norm_eps,
        })
    }

    /// How many patches a picture has, with the one place before them that stands for all.
    pub(crate) fn positions(&self) -> Result<i64> {
        let (image, patch) = (self.image_size, self.patch_size);
        let side = if patch < 1 { 0 } else { image / patch };
        match side.checked_mul(side).and_then(|patches| patches.checked_add(1)) {
            Some(positions) if side > 0 => Ok(positions),
            _ => {
                Err(Error::Config(format!("no patch of `patch_size` {patch} is in a picture of `image_size` {image}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_that_do_not_fill_the_picture_leave_its_edge_out() {
        let positions = |image_size, patch_size| {
            CLIPVisionConfig { image_size, patch_size, ..CLIPVisionConfig::default() }.positions()
        };
        assert_eq!((positions(224, 14).unwrap(), positions(30, 7).unwrap()), (257, 17));
        for (image, patch) in [(224, 0), (8, 14), (-3, 1), (i64::MAX, 1)] {
            assert!(matches!(positions(image, patch), Err(Error::Config(_))), "{image} {patch}");
        }
    }
}
