//! Attention between tokens.
//!
//! Mirrors `Attention` and its processors of `diffusers/models/attention_processor.py` (0.42.1): Vaswani et al. 2017,
//! arXiv:1706.03762.

mod processor;

pub(crate) use processor::ProcessorSetting;
pub use processor::{
    AttentionProcessor, AttentionSlicing, attention_backends, attn_processors, scaled_dot_product_attention,
    set_attention_backend, set_attention_slice, set_attention_slices, set_fused_projections,
    set_use_memory_efficient_attention,
};

use crate::error::Result;
use crate::nn::{FusedLinear, Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use std::sync::Arc;
use tch::Tensor;

/// What an [`Attention`] is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Channels of the tokens that ask, and of the result.
    pub query_dim: i64,
    /// Channels of the tokens that are asked; none if the tokens ask each other.
    pub cross_attention_dim: Option<i64>,
    /// Number of heads.
    pub heads: i64,
    /// Channels of each head.
    pub dim_head: i64,
    /// Whether queries, keys and values are projected with a bias; the output always is.
    pub bias: bool,
    /// Whether scores are computed in float32. As in diffusers, only attention in slices looks at it.
    pub upcast_attention: bool,
}

/// Multi-head attention of tokens to each other, or to the tokens of `encoder_hidden_states`.
#[derive(Debug)]
pub struct Attention {
    node: Node,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    cross: bool,
    fused: FusedLinear,
    processor: Arc<ProcessorSetting>,
}

impl Attention {
    /// Reads `to_q`, `to_k`, `to_v` and `to_out.0`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: AttentionConfig) -> Result<Self> {
        let AttentionConfig { query_dim, heads, dim_head, bias, upcast_attention, .. } = config;
        let inner_dim = heads * dim_head;
        let key_dim = config.cross_attention_dim.unwrap_or(query_dim);
        let to_q = Linear::new(&scope / "to_q", query_dim, inner_dim, bias)?;
        let to_k = Linear::new(&scope / "to_k", key_dim, inner_dim, bias)?;
        let to_v = Linear::new(&scope / "to_v", key_dim, inner_dim, bias)?;
        let to_out = Linear::new(&scope / "to_out" / 0, inner_dim, query_dim, true)?;
        let processor = ProcessorSetting::new(heads, true, upcast_attention);
        scope.attach(processor.clone());
        let (cross, fused) = (config.cross_attention_dim.is_some(), FusedLinear::default());
        Ok(Self { node: scope.finish::<Self>(), to_q, to_k, to_v, to_out, heads, cross, fused, processor })
    }

    /// `attention_mask` is added to the scores: 0 keeps a token, a large negative number hides it.
    ///
    /// # Shapes
    /// `hidden_states` is `[batch, queries, query_dim]`, and the same comes out; `encoder_hidden_states` is
    /// `[batch, keys, cross_attention_dim]`; the mask broadcasts to `[batch, heads, queries, keys]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: Option<&Tensor>,
        attention_mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [hidden_states] = match encoder_hidden_states {
            None => self.node.call([hidden_states], |[x]| Ok([self.attend(x, x, attention_mask)?])),
            Some(encoder_hidden_states) => self
                .node
                .call([hidden_states, encoder_hidden_states], |[x, y]| Ok([self.attend(x, y, attention_mask)?])),
        }?;
        Ok(hidden_states)
    }

    /// Queries, keys and values, `[batch, tokens, heads * dim_head]` each.
    fn project(&self, hidden_states: &Tensor, context: &Tensor) -> Result<[Tensor; 3]> {
        let Self { to_q, to_k, to_v, fused, .. } = self;
        match (self.processor.is_fused(), self.cross) {
            (false, _) => Ok([to_q.forward(hidden_states)?, to_k.forward(context)?, to_v.forward(context)?]),
            (true, false) => fused.forward([to_q, to_k, to_v], hidden_states),
            (true, true) => {
                let [key, value] = fused.forward([to_k, to_v], context)?;
                Ok([to_q.forward(hidden_states)?, key, value])
            }
        }
    }

    /// Attention of the tokens in `hidden_states` to those in `context`.
    fn attend(&self, hidden_states: &Tensor, context: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        let [query, key, value] = self.project(hidden_states, context)?;
        let (query, key) = (query.split_heads(self.heads)?, key.split_heads(self.heads)?);
        let value = value.split_heads(self.heads)?;
        self.to_out.forward(&self.processor.attend(&query, &key, &value, attention_mask)?.merge_heads()?)
    }
}

impl Module for Attention {
    fn node(&self) -> &Node {
        &self.node
    }
}
