//! The blocks: one for two streams of tokens, one for both in one.

use super::attention::FluxAttention;
use super::rotary::Rotary;
use crate::error::Result;
use crate::models::attention::{FeedForward, FeedForwardActivation};
use crate::models::normalization::{AdaLayerNormZero, AdaLayerNormZeroSingle, Modulation};
use crate::nn::{LayerNorm, Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use tch::{Kind, Tensor};

/// What the norms without weights add to the variance.
const EPS: f64 = 1e-6;
/// The largest number of float16.
const LARGEST: f64 = 65504.0;

/// Keeps what would be infinite in float16 at its largest number.
fn clip(hidden_states: Tensor) -> Result<Tensor> {
    Ok(match hidden_states.f_kind()? {
        Kind::Half => hidden_states.f_clip(-LARGEST, LARGEST)?,
        _ => hidden_states,
    })
}

/// One stream's half of a block with two.
#[derive(Debug)]
struct Stream {
    norm1: AdaLayerNormZero,
    norm2: LayerNorm,
    ff: FeedForward,
}

impl Stream {
    fn new(scope: &Scope<'_>, [norm1, norm2, ff]: [&str; 3], dim: i64) -> Result<Self> {
        Ok(Self {
            norm1: AdaLayerNormZero::new(scope / norm1, dim)?,
            norm2: LayerNorm::without_affine(scope / norm2, dim, EPS),
            ff: FeedForward::new(scope / ff, dim, FeedForwardActivation::GeluApproximate)?,
        })
    }

    /// What attention and feed-forward add to the stream.
    fn forward(&self, hidden_states: &Tensor, attended: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let hidden_states = hidden_states.f_add(&modulation.gate_msa.f_mul(attended)?)?;
        let normed = modulation.modulate_mlp(self.norm2.forward(&hidden_states)?)?;
        let fed = modulation.gate_mlp.f_mul(&self.ff.forward(&normed)?)?;
        hidden_states.add_into(&fed)
    }
}

/// Attention over both streams, then a feed-forward for each.
#[derive(Debug)]
pub(super) struct FluxTransformerBlock {
    node: Node,
    picture: Stream,
    text: Stream,
    attn: FluxAttention,
}

impl FluxTransformerBlock {
    pub(super) fn new(scope: Scope<'_>, dim: i64, heads: i64) -> Result<Self> {
        let picture = Stream::new(&scope, ["norm1", "norm2", "ff"], dim)?;
        let text = Stream::new(&scope, ["norm1_context", "norm2_context", "ff_context"], dim)?;
        let attn = FluxAttention::new(&scope / "attn", dim, heads, true)?;
        Ok(Self { node: scope.finish::<Self>(), picture, text, attn })
    }

    /// Text and picture, `[batch, tokens, dim]` each, in the order of the result.
    pub(super) fn forward(
        &self,
        [encoder_hidden_states, hidden_states]: [&Tensor; 2],
        temb: &Tensor,
        rotary: &Rotary,
    ) -> Result<[Tensor; 2]> {
        // What takes the block's place needs the places as well.
        let [cos, sin] = rotary.parts();
        self.node.call([encoder_hidden_states, hidden_states, temb, cos, sin], |[words, picture, temb, cos, sin]| {
            let rotary = &Rotary::of_parts(cos, sin);
            let (normed, modulation) = self.picture.norm1.forward(picture, temb)?;
            let (normed_words, modulation_of_words) = self.text.norm1.forward(words, temb)?;
            let [attended, attended_words] = self.attn.forward_both(&normed, &normed_words, rotary)?;
            let picture = self.picture.forward(picture, &attended, &modulation)?;
            let words = self.text.forward(words, &attended_words, &modulation_of_words)?;
            Ok([clip(words)?, picture])
        })
    }
}

impl Module for FluxTransformerBlock {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Attention and feed-forward side by side, over text and picture as one stream.
#[derive(Debug)]
pub(super) struct FluxSingleTransformerBlock {
    node: Node,
    norm: AdaLayerNormZeroSingle,
    proj_mlp: Linear,
    proj_out: Linear,
    attn: FluxAttention,
}

impl FluxSingleTransformerBlock {
    pub(super) fn new(scope: Scope<'_>, dim: i64, heads: i64) -> Result<Self> {
        let mlp_hidden_dim = 4 * dim;
        let norm = AdaLayerNormZeroSingle::new(&scope / "norm", dim)?;
        let proj_mlp = Linear::new(&scope / "proj_mlp", dim, mlp_hidden_dim, true)?;
        let proj_out = Linear::new(&scope / "proj_out", dim + mlp_hidden_dim, dim, true)?;
        let attn = FluxAttention::new(&scope / "attn", dim, heads, false)?;
        Ok(Self { node: scope.finish::<Self>(), norm, proj_mlp, proj_out, attn })
    }

    /// As [`FluxTransformerBlock::forward`].
    pub(super) fn forward(
        &self,
        [encoder_hidden_states, hidden_states]: [&Tensor; 2],
        temb: &Tensor,
        rotary: &Rotary,
    ) -> Result<[Tensor; 2]> {
        let [cos, sin] = rotary.parts();
        self.node.call([encoder_hidden_states, hidden_states, temb, cos, sin], |[words, picture, temb, cos, sin]| {
            let rotary = &Rotary::of_parts(cos, sin);
            let ((_, tokens, _), (_, pixels, _)) = (words.size3()?, picture.size3()?);
            let joined = Tensor::f_cat(&[words, picture], 1)?;
            let [normed, gate] = self.norm.forward(&joined, temb)?;
            let mlp = self.proj_mlp.forward(&normed)?.f_gelu("tanh")?;
            let attended = self.attn.forward(&normed, rotary)?;
            let output = self.proj_out.forward(&Tensor::f_cat(&[attended, mlp], 2)?)?;
            let joined = clip(joined.add_into(&gate.f_mul(&output)?)?)?;
            Ok([joined.f_narrow(1, 0, tokens)?, joined.f_narrow(1, tokens, pixels)?])
        })
    }
}

impl Module for FluxSingleTransformerBlock {
    fn node(&self) -> &Node {
        &self.node
    }
}
