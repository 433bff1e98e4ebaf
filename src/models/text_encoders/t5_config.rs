//! T5's configuration.

use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a T5 encoder is built from, under transformers' names and with its defaults (T5 small).
///
/// Keys that have no meaning for an encoder's inference (`dropout_rate`, `num_decoder_layers` ...) are kept in `other`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct T5Config {
    /// Rows of the token table; 32128 by default.
    pub vocab_size: i64,
    /// Width of the hidden states; 512 by default.
    pub d_model: i64,
    /// Width of a head; 64 by default.
    pub d_kv: i64,
    /// Width inside the feed-forward; 2048 by default.
    pub d_ff: i64,
    /// Layers; 6 by default.
    pub num_layers: usize,
    /// Heads; 8 by default.
    pub num_heads: i64,
    /// How many distances between tokens are told apart; 32 by default.
    pub relative_attention_num_buckets: i64,
    /// The distance from which on none are told apart; 128 by default.
    pub relative_attention_max_distance: i64,
    /// What the norms add to the mean square; 1e-6 by default.
    pub layer_norm_epsilon: f64,
    /// `relu`, or as in T5 1.1 `gated-gelu`; `relu` by default.
    pub feed_forward_proj: String,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
            other: ConfigMap::new(),
        }
    }
}

impl T5Config {
    /// Whether one half of the feed-forward gates the other.
    pub(super) fn is_gated(&self) -> Result<bool> {
        match self.feed_forward_proj.as_str() {
            "relu" => Ok(false),
            "gated-gelu" => Ok(true),
            other => Err(Error::Unsupported(format!("feed_forward_proj `{other}`: supported are relu and gated-gelu"))),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let (buckets, distance) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        if buckets < 4 || distance <= buckets / 4 {
            return Err(Error::Config(format!(
                "`relative_attention_num_buckets` {buckets} is at least 4, and `relative_attention_max_distance` {distance} \
                 more than a quarter of it"
            )));
        }
        Ok(())
    }
}
