//! Attention over text and picture together.

use super::rotary::Rotary;
use crate::error::{Error, Result};
use crate::models::attention_processor::ProcessorSetting;
use crate::nn::{FusedLinear, Linear, Module, Node, RMSNorm, Scope};
use std::sync::Arc;
use tch::Tensor;

/// What the norms of queries and keys add to the mean square.
const EPS: f64 = 1e-6;

/// How queries, keys and values are made of one stream of tokens: `[batch, tokens, heads, head_dim]` each.
#[derive(Debug)]
struct Projections {
    maps: [Linear; 3],
    norm_query: RMSNorm,
    norm_key: RMSNorm,
    fused: FusedLinear,
    heads: i64,
}

impl Projections {
    /// Reads three linear maps and two norms of these names.
    fn new(scope: &Scope<'_>, names: [&str; 5], dim: i64, heads: i64) -> Result<Self> {
        let [query, key, value, norm_query, norm_key] = names;
        let linear = |name: &str| Linear::new(scope / name, dim, dim, true);
        let norm = |name: &str| RMSNorm::new(scope / name, dim / heads, EPS);
        let (norm_query, norm_key) = (norm(norm_query)?, norm(norm_key)?);
        let maps = [linear(query)?, linear(key)?, linear(value)?];
        Ok(Self { maps, norm_query, norm_key, fused: FusedLinear::default(), heads })
    }

    fn forward(&self, hidden_states: &Tensor, fused: bool) -> Result<[Tensor; 3]> {
        let [query, key, value] = self.maps.each_ref();
        let [query, key, value] = match fused {
            true => self.fused.forward([query, key, value], hidden_states)?,
            false => [query.forward(hidden_states)?, key.forward(hidden_states)?, value.forward(hidden_states)?],
        };
        let heads = |tensor: Tensor| tensor.f_unflatten(-1, [self.heads, -1]);
        Ok([self.norm_query.forward(&heads(query)?)?, self.norm_key.forward(&heads(key)?)?, heads(value)?])
    }
}

/// What the attention of a block with two streams has beyond that of one: the text's own maps.
#[derive(Debug)]
struct Text {
    projections: Projections,
    to_out: Linear,
    to_add_out: Linear,
}

/// Attention of all tokens to each other, their queries and keys normalised and turned by their places.
#[derive(Debug)]
pub(super) struct FluxAttention {
    node: Node,
    picture: Projections,
    text: Option<Text>,
    processor: Arc<ProcessorSetting>,
}

impl FluxAttention {
    /// With `text`, the text's tokens have maps of their own.
    pub(super) fn new(scope: Scope<'_>, dim: i64, heads: i64, text: bool) -> Result<Self> {
        let picture = Projections::new(&scope, ["to_q", "to_k", "to_v", "norm_q", "norm_k"], dim, heads)?;
        let added = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];
        let text = match text {
            false => None,
            true => Some(Text {
                to_out: Linear::new(&scope / "to_out" / 0, dim, dim, true)?,
                projections: Projections::new(&scope, added, dim, heads)?,
                to_add_out: Linear::new(&scope / "to_add_out", dim, dim, true)?,
            }),
        };
        let processor = ProcessorSetting::new(heads, false, false);
        scope.attach(processor.clone());
        Ok(Self { node: scope.finish::<Self>(), picture, text, processor })
    }

    /// Of one stream, `[batch, tokens, dim]`; nothing is made of the result, which has the same shape.
    pub(super) fn forward(&self, hidden_states: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let [attended] = self.node.call([hidden_states], |[hidden_states]| {
            let projected = self.picture.forward(hidden_states, self.processor.is_fused())?;
            Ok([self.attend(projected, rotary)?])
        })?;
        Ok(attended)
    }

    /// Of picture and text, `[batch, tokens, dim]` each; in the same order.
    pub(super) fn forward_both(
        &self,
        hidden_states: &Tensor,
        encoder_hidden_states: &Tensor,
        rotary: &Rotary,
    ) -> Result<[Tensor; 2]> {
        self.node.call([hidden_states, encoder_hidden_states], |[picture, words]| {
            let Some(text) = &self.text else {
                return Err(Error::Argument("this attention has no maps for a second stream".into()));
            };
            let fused = self.processor.is_fused();
            let of_picture = self.picture.forward(picture, fused)?;
            let of_text = text.projections.forward(words, fused)?;
            let [query, key, value] = std::array::from_fn(|i| Tensor::f_cat(&[&of_text[i], &of_picture[i]], 1));
            let attended = self.attend([query?, key?, value?], rotary)?;
            let (_, tokens, _) = words.size3()?;
            let (_, pixels, _) = picture.size3()?;
            let picture = attended.f_narrow(1, tokens, pixels)?.f_contiguous()?;
            let words = attended.f_narrow(1, 0, tokens)?.f_contiguous()?;
            Ok([text.to_out.forward(&picture)?, text.to_add_out.forward(&words)?])
        })
    }

    fn attend(&self, [query, key, value]: [Tensor; 3], rotary: &Rotary) -> Result<Tensor> {
        let heads_first = |tensor: &Tensor| tensor.f_transpose(1, 2);
        let query = heads_first(&rotary.turn(&query)?)?;
        let key = heads_first(&rotary.turn(&key)?)?;
        let attended = self.processor.attend(&query, &key, &heads_first(&value)?, None)?;
        Ok(attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }
}

impl Module for FluxAttention {
    fn node(&self) -> &Node {
        &self.node
    }
}
