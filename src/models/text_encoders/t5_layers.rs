//! The layers of T5's encoder.

use super::t5_config::T5Config;
use crate::error::Result;
use crate::nn::{Embedding, Linear, Module, Node, Param, Scope};
use crate::torch::{NumberExt, TensorExt};
use tch::{Device, Kind, Tensor};

/// A root-mean-square norm whose mean is in float32: `T5LayerNorm`.
#[derive(Debug)]
pub(super) struct T5LayerNorm {
    node: Node,
    weight: Param,
    eps: f64,
}

impl T5LayerNorm {
    pub(super) fn new(scope: Scope<'_>, config: &T5Config) -> Result<Self> {
        let weight = scope.param("weight", &[config.d_model])?;
        Ok(Self { node: scope.finish::<Self>(), weight, eps: config.layer_norm_epsilon })
    }

    pub(super) fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let weight = self.weight.get();
            let squares = hidden_states.f_to_kind(Kind::Float)?.raised_to(2i64)?;
            let variance = squares.f_mean_dim(-1, true, None::<Kind>)?;
            let normed = hidden_states.f_mul(&variance.plus(self.eps)?.f_rsqrt()?)?;
            Ok([weight.f_mul(&normed.f_to_kind(weight.f_kind()?)?)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for T5LayerNorm {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Attention to all tokens, with a bias for each distance between two. The products are not scaled.
#[derive(Debug)]
pub(super) struct T5Attention {
    node: Node,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// The first layer's; the others use what it makes.
    relative_attention_bias: Option<Embedding>,
    heads: i64,
    buckets: i64,
    max_distance: i64,
}

impl T5Attention {
    fn new(scope: Scope<'_>, config: &T5Config, first: bool) -> Result<Self> {
        let inner_dim = config.num_heads * config.d_kv;
        let linear = |name: &str, from, to| Linear::new(&scope / name, from, to, false);
        let (q, k) = (linear("q", config.d_model, inner_dim)?, linear("k", config.d_model, inner_dim)?);
        let (v, o) = (linear("v", config.d_model, inner_dim)?, linear("o", inner_dim, config.d_model)?);
        let (buckets, max_distance) = (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        let table = || Embedding::new(&scope / "relative_attention_bias", buckets, config.num_heads);
        let relative_attention_bias = first.then(table).transpose()?;
        let heads = config.num_heads;
        Ok(Self { node: scope.finish::<Self>(), q, k, v, o, relative_attention_bias, heads, buckets, max_distance })
    }

    /// The bias of each distance between `tokens` tokens, `[1, heads, tokens, tokens]`; none but of the first layer.
    fn position_bias(&self, tokens: i64, device: Device) -> Result<Option<Tensor>> {
        let Some(table) = &self.relative_attention_bias else { return Ok(None) };
        let places = Tensor::f_arange(tokens, (Kind::Int64, device))?;
        let distances = places.f_unsqueeze(0)?.f_sub(&places.f_unsqueeze(1)?)?;
        let biases = table.forward(&self.bucket(&distances)?)?;
        Ok(Some(biases.f_permute([2, 0, 1])?.f_unsqueeze(0)?))
    }

    /// The number of each distance's bucket: half of them for either direction, half of these for each small distance, and
    /// the rest for spans that grow with the distance.
    fn bucket(&self, distances: &Tensor) -> Result<Tensor> {
        let half = self.buckets / 2;
        let exact = half / 2;
        let ahead = distances.is_above(0i64)?.f_to_kind(Kind::Int64)?.times(half)?;
        let distances = distances.f_abs()?;
        let span = (self.max_distance as f64 / exact as f64).ln();
        let far = distances.f_to_kind(Kind::Float)?.over(exact)?.f_log()?.over(span)?;
        let far = far.times(half - exact)?.f_to_kind(Kind::Int64)?.plus(exact)?.no_more_than(half - 1)?;
        Ok(ahead.f_add(&distances.f_where_self(&distances.is_below(exact)?, &far)?)?)
    }

    /// `bias` is `[1 or batch, heads, tokens, tokens]`.
    fn forward(&self, hidden_states: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let [attended] = self.node.call([hidden_states, bias], |[hidden_states, bias]| {
            let heads = |linear: &Linear| linear.forward(hidden_states)?.split_heads(self.heads);
            let (query, key, value) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
            let bias = Some(bias.f_contiguous()?);
            let scale = Some(1.0);
            let attended =
                Tensor::f_scaled_dot_product_attention(&query, &key, &value, bias, 0.0, false, scale, false)?;
            Ok([self.o.forward(&attended.merge_heads()?.f_contiguous()?)?])
        })?;
        Ok(attended)
    }
}

impl Module for T5Attention {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The feed-forward: `DenseReluDense`, gated or not.
#[derive(Debug)]
struct T5Dense {
    node: Node,
    /// One map before the non-linearity, and a second that is gated by it.
    wi: Vec<Linear>,
    wo: Linear,
}

impl T5Dense {
    fn new(scope: Scope<'_>, config: &T5Config) -> Result<Self> {
        let names: &[&str] = if config.is_gated()? { &["wi_0", "wi_1"] } else { &["wi"] };
        let wi = names.iter().map(|name| Linear::new(&scope / *name, config.d_model, config.d_ff, false));
        let wi = wi.collect::<Result<_>>()?;
        let wo = Linear::new(&scope / "wo", config.d_ff, config.d_model, false)?;
        Ok(Self { node: scope.finish::<Self>(), wi, wo })
    }

    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [output] = self.node.call([hidden_states], |[hidden_states]| {
            let inner = match &self.wi[..] {
                [gate, map] => gelu_new(&gate.forward(hidden_states)?)?.f_mul(&map.forward(hidden_states)?)?,
                maps => match maps.first() {
                    Some(map) => map.forward(hidden_states)?.f_relu()?,
                    None => hidden_states.shallow_clone(),
                },
            };
            Ok([self.wo.forward(&inner.f_to_kind(self.wo.dtype())?)?])
        })?;
        Ok(output)
    }
}

impl Module for T5Dense {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// GELU by the hyperbolic tangent, operation by operation as transformers' `NewGELUActivation`.
fn gelu_new(x: &Tensor) -> Result<Tensor> {
    let cubed = x.raised_to(3.0)?.times(0.044715)?;
    let inner = x.f_add(&cubed)?.times((2.0 / std::f64::consts::PI).sqrt())?;
    Ok(x.times(0.5)?.f_mul(&inner.f_tanh()?.plus(1.0)?)?)
}

/// Attention and feed-forward, each behind a norm and added to its input.
#[derive(Debug)]
pub(super) struct T5Block {
    node: Node,
    attention_norm: T5LayerNorm,
    attention: T5Attention,
    dense_norm: T5LayerNorm,
    dense: T5Dense,
}

impl T5Block {
    /// `first` has the table of biases.
    pub(super) fn new(scope: Scope<'_>, config: &T5Config, first: bool) -> Result<Self> {
        let layer = &scope / "layer";
        let attention = T5Attention::new(&layer / 0 / "SelfAttention", config, first)?;
        let attention_norm = T5LayerNorm::new(&layer / 0 / "layer_norm", config)?;
        let dense = T5Dense::new(&layer / 1 / "DenseReluDense", config)?;
        let dense_norm = T5LayerNorm::new(&layer / 1 / "layer_norm", config)?;
        Ok(Self { node: scope.finish::<Self>(), attention_norm, attention, dense_norm, dense })
    }

    /// See [`T5Attention::position_bias`].
    pub(super) fn position_bias(&self, tokens: i64, device: Device) -> Result<Option<Tensor>> {
        self.attention.position_bias(tokens, device)
    }

    pub(super) fn forward(&self, hidden_states: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states, bias], |[hidden_states, bias]| {
            let attended = self.attention.forward(&self.attention_norm.forward(hidden_states)?, bias)?;
            let hidden_states = clamp(hidden_states.f_add(&attended)?)?;
            let fed = self.dense.forward(&self.dense_norm.forward(&hidden_states)?)?;
            Ok([clamp(hidden_states.f_add(&fed)?)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for T5Block {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Keeps float16 finite, a little below its largest number where it was not.
fn clamp(hidden_states: Tensor) -> Result<Tensor> {
    const LARGEST: f64 = 65504.0;
    if hidden_states.f_kind()? != Kind::Half {
        return Ok(hidden_states);
    }
    let options = (Kind::Half, hidden_states.device());
    let below = Tensor::f_full([], LARGEST - 1000.0, options)?;
    let largest = Tensor::f_full([], LARGEST, options)?;
    let bound = below.f_where_self(&hidden_states.f_isinf()?.f_any()?, &largest)?;
    Ok(hidden_states.f_clamp_tensor(Some(&bound.f_neg()?), Some(&bound))?)
}
