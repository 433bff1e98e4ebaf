//! The transformer block of UNets.
//!
//! Mirrors `BasicTransformerBlock` and `FeedForward` of `diffusers/models/attention.py` (0.42.1), of which it has what
//! UNets use: `norm_type="layer_norm"`. The block is that of Rombach et al. 2022, arXiv:2112.10752, appendix E.2.

use super::activations::{GEGLU, GELU};
use super::attention_processor::{Attention, AttentionConfig};
use crate::error::{Error, Result};
use crate::nn::{LayerNorm, Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use std::str::FromStr;
use std::sync::Arc;
use tch::Tensor;

/// The non-linearity of a [`FeedForward`]: diffusers' `activation_fn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FeedForwardActivation {
    /// Gated by GELU: `geglu`.
    #[default]
    Geglu,
    /// GELU by the error function: `gelu`.
    Gelu,
    /// GELU by the hyperbolic tangent: `gelu-approximate`.
    GeluApproximate,
}

impl FromStr for FeedForwardActivation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "geglu" => Ok(Self::Geglu),
            "gelu" => Ok(Self::Gelu),
            "gelu-approximate" => Ok(Self::GeluApproximate),
            other => {
                Err(Error::Unsupported(format!("activation_fn `{other}`: supported are geglu, gelu, gelu-approximate")))
            }
        }
    }
}

/// The layer at `net.0`.
#[derive(Debug)]
enum Project {
    Geglu(GEGLU),
    Gelu(GELU),
}

/// Two linear maps with a non-linearity between them, four times as wide inside as outside.
#[derive(Debug)]
pub struct FeedForward {
    node: Node,
    project: Project,
    out: Linear,
}

impl FeedForward {
    /// Reads `net.0.proj` and `net.2`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, dim: i64, activation_fn: FeedForwardActivation) -> Result<Self> {
        let inner_dim = dim * 4;
        let net = &scope / "net";
        let project = match activation_fn {
            FeedForwardActivation::Geglu => Project::Geglu(GEGLU::new(&net / 0, dim, inner_dim)?),
            FeedForwardActivation::Gelu => Project::Gelu(GELU::new(&net / 0, dim, inner_dim, false)?),
            FeedForwardActivation::GeluApproximate => Project::Gelu(GELU::new(&net / 0, dim, inner_dim, true)?),
        };
        let out = Linear::new(&net / 2, inner_dim, dim, true)?;
        Ok(Self { node: scope.finish::<Self>(), project, out })
    }

    /// # Shapes
    /// `[.., dim]`, and the same comes out.
    ///
    /// # Errors
    /// If the last dimension is not `dim`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let hidden_states = match &self.project {
                Project::Geglu(geglu) => geglu.forward(hidden_states)?,
                Project::Gelu(gelu) => gelu.forward(hidden_states)?,
            };
            Ok([self.out.forward(&hidden_states)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for FeedForward {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// What a [`BasicTransformerBlock`] is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BasicTransformerBlockConfig {
    /// Channels of the tokens.
    pub dim: i64,
    /// Heads of both attentions.
    pub num_attention_heads: i64,
    /// Channels of each head.
    pub attention_head_dim: i64,
    /// Channels of the text's tokens; none leaves the second attention out.
    pub cross_attention_dim: Option<i64>,
    /// Whether the first attention looks at the text too, instead of at the tokens themselves.
    pub only_cross_attention: bool,
    /// Whether queries, keys and values are projected with a bias; no.
    pub attention_bias: bool,
    /// Whether attention in slices computes its scores in float32; no.
    pub upcast_attention: bool,
    /// The feed-forward's non-linearity; GEGLU.
    pub activation_fn: FeedForwardActivation,
    /// What the norms add to the variance; 1e-5.
    pub norm_eps: f64,
}

impl BasicTransformerBlockConfig {
    /// diffusers' defaults, for `heads` heads of `head_dim` channels that look at text of `cross_attention_dim` channels.
    #[must_use]
    pub fn new(heads: i64, head_dim: i64, cross_attention_dim: Option<i64>) -> Self {
        Self {
            dim: heads * head_dim,
            num_attention_heads: heads,
            attention_head_dim: head_dim,
            cross_attention_dim,
            only_cross_attention: false,
            attention_bias: false,
            upcast_attention: false,
            activation_fn: FeedForwardActivation::Geglu,
            norm_eps: 1e-5,
        }
    }

    fn attention(&self, cross_attention_dim: Option<i64>) -> AttentionConfig {
        AttentionConfig {
            query_dim: self.dim,
            cross_attention_dim,
            heads: self.num_attention_heads,
            dim_head: self.attention_head_dim,
            bias: self.attention_bias,
            upcast_attention: self.upcast_attention,
        }
    }
}

/// Attention of the picture's tokens to each other, to the text, and a feed-forward, each behind a norm and added to its
/// input.
#[derive(Debug)]
pub struct BasicTransformerBlock {
    node: Node,
    norm1: LayerNorm,
    attn1: Attention,
    cross: Option<(LayerNorm, Attention)>,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    /// Reads `norm1`, `attn1`, `norm2`, `attn2`, `norm3` and `ff`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: BasicTransformerBlockConfig) -> Result<Self> {
        let BasicTransformerBlockConfig { dim, norm_eps, only_cross_attention, .. } = config;
        let first_dim = config.cross_attention_dim.filter(|_| only_cross_attention);
        let norm1 = LayerNorm::new(&scope / "norm1", dim, norm_eps)?;
        let attn1 = Attention::new(&scope / "attn1", config.attention(first_dim))?;
        let cross = match config.cross_attention_dim {
            None => None,
            second_dim => Some((
                LayerNorm::new(&scope / "norm2", dim, norm_eps)?,
                Attention::new(&scope / "attn2", config.attention(second_dim))?,
            )),
        };
        let norm3 = LayerNorm::new(&scope / "norm3", dim, norm_eps)?;
        let ff = FeedForward::new(&scope / "ff", dim, config.activation_fn)?;
        scope.attach(Arc::new(config));
        Ok(Self { node: scope.finish::<Self>(), norm1, attn1, cross, norm3, ff, only_cross_attention })
    }

    /// `attention_mask` is added to the scores of the first attention, `encoder_attention_mask` to those of the second;
    /// [`Attention::forward`] says how.
    ///
    /// # Shapes
    /// `hidden_states` is `[batch, tokens, dim]`, and the same comes out; `encoder_hidden_states` is
    /// `[batch, keys, cross_attention_dim]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        attention_mask: Option<&Tensor>,
        encoder_attention_mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        // Masks are no hook's to change, but whoever stands in for the block has to know that there are some.
        let masks = [attention_mask, encoder_attention_mask];
        let inputs: Vec<_> =
            [Some(hidden_states), Some(encoder_hidden_states)].into_iter().chain(masks).flatten().collect();
        let mut outputs = self.node.call_many(&inputs, |inputs| {
            let &[hidden_states, text, ..] = inputs else {
                return Err(Error::Arity { expected: 2, found: inputs.len() });
            };
            let context = self.only_cross_attention.then_some(text);
            let attended = self.attn1.forward(&self.norm1.forward(hidden_states)?, context, attention_mask)?;
            let mut hidden_states = attended.add_into(hidden_states)?;
            if let Some((norm2, attn2)) = &self.cross {
                let attended = attn2.forward(&norm2.forward(&hidden_states)?, Some(text), encoder_attention_mask)?;
                hidden_states = attended.add_into(&hidden_states)?;
            }
            Ok(vec![self.ff.forward(&self.norm3.forward(&hidden_states)?)?.add_into(&hidden_states)?])
        })?;
        outputs.pop().ok_or(Error::Arity { expected: 1, found: 0 })
    }
}

impl Module for BasicTransformerBlock {
    fn node(&self) -> &Node {
        &self.node
    }
}
