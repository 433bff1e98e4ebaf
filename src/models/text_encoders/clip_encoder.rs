//! The layers of CLIP's transformers, of texts and of pictures.
//!
//! Mirrors `CLIPTextEmbeddings`, `CLIPAttention`, `CLIPMLP` and `CLIPEncoderLayer` of
//! `transformers/models/clip/modeling_clip.py` at 5.23, on its default path (`sdpa`).
//! Radford et al. 2021, arXiv:2103.00020.

use super::clip_config::CLIPTextConfig;
use crate::error::{Error, Result};
use crate::nn::{Activation, Embedding, LayerNorm, Linear, Module, Node, Param, Scope};
use crate::torch::TensorExt;
use tch::{Kind, Tensor};

/// One learned vector for each position.
#[derive(Debug)]
pub(in crate::models) struct PositionEmbedding {
    node: Node,
    weight: Param,
}

impl PositionEmbedding {
    pub(in crate::models) fn new(scope: Scope<'_>, positions: i64, dim: i64) -> Result<Self> {
        let weight = scope.param("weight", &[positions, dim])?;
        Ok(Self { node: scope.finish::<Self>(), weight })
    }

    /// Adds the first rows of the table. A slice holds the very numbers that a look-up of 0, 1, 2 ... would gather.
    pub(in crate::models) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let (_, tokens, _) = hidden_states.size3()?;
            Ok([hidden_states.f_add(&self.weight.get().f_narrow(0, 0, tokens)?)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for PositionEmbedding {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Tokens to vectors.
#[derive(Debug)]
pub(super) struct CLIPTextEmbeddings {
    node: Node,
    token_embedding: Embedding,
    position_embedding: PositionEmbedding,
    vocab_size: i64,
    max_position_embeddings: i64,
}

impl CLIPTextEmbeddings {
    pub(super) fn new(scope: Scope<'_>, config: &CLIPTextConfig) -> Result<Self> {
        let &CLIPTextConfig { vocab_size, hidden_size, max_position_embeddings, .. } = config;
        let token_embedding = Embedding::new(&scope / "token_embedding", vocab_size, hidden_size)?;
        let position_embedding =
            PositionEmbedding::new(&scope / "position_embedding", max_position_embeddings, hidden_size)?;
        let node = scope.finish::<Self>();
        Ok(Self { node, token_embedding, position_embedding, vocab_size, max_position_embeddings })
    }

    /// `[batch, tokens]` of ids to `[batch, tokens, hidden_size]`.
    pub(super) fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([input_ids], |[input_ids]| {
            self.check(input_ids)?;
            Ok([self.position_embedding.forward(&self.token_embedding.forward(input_ids)?)?])
        })?;
        Ok(hidden_states)
    }

    /// An id without a row would be an `IndexError` on the CPU, and on a GPU an assertion that takes the process's
    /// whole context with it: worth the one look at the ids for each prompt.
    fn check(&self, input_ids: &Tensor) -> Result<()> {
        let (batch, tokens) = input_ids.size2()?;
        if batch < 1 || tokens < 1 {
            return Err(Error::Shape(format!("`input_ids` {:?} hold no token", [batch, tokens])));
        }
        let limit = self.max_position_embeddings;
        if tokens > limit {
            return Err(Error::Shape(format!("{tokens} tokens: `max_position_embeddings` lets in {limit}")));
        }
        let (least, largest) = (input_ids.f_min()?.f_int64_value(&[])?, input_ids.f_max()?.f_int64_value(&[])?);
        if let Some(id) = [least, largest].into_iter().find(|id| !(0..self.vocab_size).contains(id)) {
            let vocab_size = self.vocab_size;
            return Err(Error::Argument(format!("token {id} is outside the vocabulary of {vocab_size} tokens")));
        }
        Ok(())
    }
}

impl Module for CLIPTextEmbeddings {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// What a layer of CLIP is built from, whether it reads texts or pictures.
#[derive(Clone, Copy, Debug)]
pub(in crate::models) struct CLIPLayerConfig {
    pub(in crate::models) hidden_size: i64,
    pub(in crate::models) intermediate_size: i64,
    pub(in crate::models) num_attention_heads: i64,
    pub(in crate::models) activation: Activation,
    pub(in crate::models) layer_norm_eps: f64,
}

impl CLIPLayerConfig {
    /// The width of one head.
    pub(in crate::models) fn head_dim(&self) -> Result<i64> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads < 1 || hidden < 1 || hidden % heads != 0 {
            return Err(Error::Config(format!("`hidden_size` {hidden} is no multiple of {heads} attention heads")));
        }
        Ok(hidden / heads)
    }
}

/// Which tokens each token sees.
#[derive(Debug)]
pub(in crate::models) enum Visible {
    /// All of them, as the patches of a picture do.
    All,
    /// All earlier ones. The kernel knows this mask by a flag.
    Earlier,
    /// Those that hold true here, `[batch, 1, tokens, tokens]`.
    Explicit(Tensor),
}

impl Visible {
    /// The mask for hidden states `[batch, tokens, ..]`, of which `attention_mask` `[batch, tokens]` switches off the
    /// tokens where it is zero. As in transformers, a mask without zeros is no mask: the flag keeps all kernels open.
    pub(super) fn causal(hidden_states: &Tensor, attention_mask: Option<&Tensor>) -> Result<Self> {
        let Some(attention_mask) = attention_mask else { return Ok(Self::Earlier) };
        let (batch, tokens, _) = hidden_states.size3()?;
        if attention_mask.size() != [batch, tokens] {
            let (mask, ids) = (attention_mask.size(), [batch, tokens]);
            return Err(Error::Shape(format!("`attention_mask` is {mask:?}, and `input_ids` are {ids:?}")));
        }
        let device = hidden_states.device();
        let attention_mask = attention_mask.f_to_device(device)?.f_to_kind(Kind::Bool)?;
        if attention_mask.f_all()?.f_int64_value(&[])? != 0 {
            return Ok(Self::Earlier);
        }
        let causal = Tensor::f_ones([tokens, tokens], (Kind::Bool, device))?.f_tril(0)?;
        let visible = causal.f_logical_and(&attention_mask.f_view([batch, 1, 1, tokens])?)?;
        Ok(Self::Explicit(visible))
    }
}

#[derive(Debug)]
struct CLIPAttention {
    node: Node,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
    scale: f64,
}

impl CLIPAttention {
    fn new(scope: Scope<'_>, config: &CLIPLayerConfig) -> Result<Self> {
        let dim = config.hidden_size;
        let linear = |name| Linear::new(&scope / name, dim, dim, true);
        let (k_proj, v_proj) = (linear("k_proj")?, linear("v_proj")?);
        let (q_proj, out_proj) = (linear("q_proj")?, linear("out_proj")?);
        let scale = (config.head_dim()? as f64).powf(-0.5);
        let heads = config.num_attention_heads;
        Ok(Self { node: scope.finish::<Self>(), q_proj, k_proj, v_proj, out_proj, heads, scale })
    }

    fn forward(&self, hidden_states: &Tensor, visible: &Visible) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let query = self.q_proj.forward(hidden_states)?.split_heads(self.heads)?;
            let key = self.k_proj.forward(hidden_states)?.split_heads(self.heads)?;
            let value = self.v_proj.forward(hidden_states)?.split_heads(self.heads)?;
            let (mask, is_causal) = match visible {
                Visible::All => (None, false),
                // One token sees itself alone, whatever the flag says; transformers then leaves it off.
                Visible::Earlier => (None, query.size4()?.2 > 1),
                Visible::Explicit(mask) => (Some(mask), false),
            };
            let attended =
                Tensor::f_scaled_dot_product_attention(&query, &key, &value, mask, 0.0, is_causal, self.scale, false)?;
            Ok([self.out_proj.forward(&attended.merge_heads()?)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for CLIPAttention {
    fn node(&self) -> &Node {
        &self.node
    }
}

#[derive(Debug)]
#[allow(clippy::upper_case_acronyms, reason = "transformers spells it so")]
struct CLIPMLP {
    node: Node,
    fc1: Linear,
    fc2: Linear,
    activation_fn: Activation,
}

impl CLIPMLP {
    fn new(scope: Scope<'_>, config: &CLIPLayerConfig) -> Result<Self> {
        let fc1 = Linear::new(&scope / "fc1", config.hidden_size, config.intermediate_size, true)?;
        let fc2 = Linear::new(&scope / "fc2", config.intermediate_size, config.hidden_size, true)?;
        Ok(Self { node: scope.finish::<Self>(), fc1, fc2, activation_fn: config.activation })
    }

    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let hidden_states = self.activation_fn.forward(&self.fc1.forward(hidden_states)?)?;
            Ok([self.fc2.forward(&hidden_states)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for CLIPMLP {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Attention and MLP, each after a norm and beside a residual.
#[derive(Debug)]
pub(in crate::models) struct CLIPEncoderLayer {
    node: Node,
    self_attn: CLIPAttention,
    layer_norm1: LayerNorm,
    mlp: CLIPMLP,
    layer_norm2: LayerNorm,
}

impl CLIPEncoderLayer {
    pub(in crate::models) fn new(scope: Scope<'_>, config: &CLIPLayerConfig) -> Result<Self> {
        let self_attn = CLIPAttention::new(&scope / "self_attn", config)?;
        let layer_norm1 = LayerNorm::new(&scope / "layer_norm1", config.hidden_size, config.layer_norm_eps)?;
        let mlp = CLIPMLP::new(&scope / "mlp", config)?;
        let layer_norm2 = LayerNorm::new(&scope / "layer_norm2", config.hidden_size, config.layer_norm_eps)?;
        Ok(Self { node: scope.finish::<Self>(), self_attn, layer_norm1, mlp, layer_norm2 })
    }

    pub(in crate::models) fn forward(&self, hidden_states: &Tensor, visible: &Visible) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let attended = self.self_attn.forward(&self.layer_norm1.forward(hidden_states)?, visible)?;
            let hidden_states = hidden_states.f_add(&attended)?;
            let transformed = self.mlp.forward(&self.layer_norm2.forward(&hidden_states)?)?;
            Ok([hidden_states.f_add(&transformed)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for CLIPEncoderLayer {
    fn node(&self) -> &Node {
        &self.node
    }
}
