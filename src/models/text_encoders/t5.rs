//! T5's encoder.
//!
//! Mirrors `T5EncoderModel` of `transformers/models/t5/modeling_t5.py` at 5.23. Raffel et al. 2020, arXiv:1910.10683.

use super::t5_config::T5Config;
use super::t5_layers::{T5Block, T5LayerNorm};
use crate::error::{Error, Result};
use crate::loaders::KeyMap;
use crate::models::ModelMixin;
use crate::nn::{Embedding, Module, Node, Scope};
use crate::torch::NumberExt;
use tch::{Kind, Tensor};

/// The encoder half of T5, which FLUX.1 reads long prompts with.
///
/// Loaded in float16, `wo` of the feed-forwards stays in float32, as in transformers: what it adds up may be beyond float16.
#[derive(Debug)]
pub struct T5EncoderModel {
    node: Node,
    config: T5Config,
    shared: Embedding,
    block: Vec<T5Block>,
    final_layer_norm: T5LayerNorm,
}

impl T5EncoderModel {
    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Unsupported`] for a configuration that cannot be; whatever the weights fail with.
    pub fn new(config: T5Config, scope: Scope<'_>) -> Result<Self> {
        config.check()?;
        let shared = Embedding::new(&scope / "shared", config.vocab_size, config.d_model)?;
        let encoder = &scope / "encoder";
        let blocks = &encoder / "block";
        let block =
            (0..config.num_layers).map(|i| T5Block::new(&blocks / i, &config, i == 0)).collect::<Result<_>>()?;
        let final_layer_norm = T5LayerNorm::new(&encoder / "final_layer_norm", &config)?;
        Ok(Self { node: scope.finish::<Self>(), config, shared, block, final_layer_norm })
    }

    /// What the model calls the checkpoint's `key`. `None` for the second name of the token table, and for a decoder's
    /// weights, which some files hold.
    #[must_use]
    pub fn checkpoint_key(key: &str) -> Option<String> {
        let skipped = key == "encoder.embed_tokens.weight" || key.starts_with("decoder.") || key == "lm_head.weight";
        (!skipped).then(|| key.into())
    }

    /// The last layer's hidden states after the norm. Tokens where `attention_mask` is zero are not looked at.
    ///
    /// # Shapes
    /// `input_ids` and `attention_mask` are `[batch, tokens]`, int64; the result is `[batch, tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary, [`Error::Shape`] for a mask of another shape.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        if let Some(mask) = attention_mask
            && mask.size() != input_ids.size()
        {
            let (ids, mask) = (input_ids.size(), mask.size());
            return Err(Error::Shape(format!("`attention_mask` is {ids:?} as `input_ids`, got {mask:?}")));
        }
        let [hidden_states] = self.node.call([input_ids], |[input_ids]| {
            let (_, tokens) = input_ids
                .size2()
                .map_err(|_| Error::Shape(format!("`input_ids` is [batch, tokens], got {:?}", input_ids.size())))?;
            let mut hidden_states = self.shared.forward(input_ids)?;
            let first = self.block.first().map(|block| block.position_bias(tokens, hidden_states.device()));
            if let Some(bias) = first.transpose()?.flatten() {
                let bias = masked(bias, attention_mask)?;
                for block in &self.block {
                    hidden_states = block.forward(&hidden_states, &bias)?;
                }
            }
            Ok([self.final_layer_norm.forward(&hidden_states)?])
        })?;
        Ok(hidden_states)
    }
}

/// The bias, with the least number for tokens that are not to be looked at.
fn masked(bias: Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
    let Some(mask) = attention_mask else { return Ok(bias) };
    let least = match bias.f_kind()? {
        Kind::Half => -65504.0,
        Kind::BFloat16 => -3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MIN),
    };
    let hidden = mask.is_equal_to(0i64)?.f_unsqueeze(1)?.f_unsqueeze(2)?;
    Ok(bias.f_masked_fill(&hidden, least)?)
}

impl Module for T5EncoderModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl ModelMixin for T5EncoderModel {
    type Config = T5Config;

    const CLASS_NAME: &'static str = "T5EncoderModel";
    const WEIGHTS_STEM: &'static str = "model";
    const KEYS: KeyMap = Self::checkpoint_key;
    const KEEP_IN_FP32_MODULES: &'static [&'static str] = &["wo"];

    fn from_scope(config: Self::Config, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &Self::Config {
        &self.config
    }
}
