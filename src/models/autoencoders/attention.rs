//! The VAE's attention between the pixels of its smallest feature map.
//!
//! Mirrors `Attention` of `diffusers/models/attention_processor.py` (0.42.1), as
//! `UNetMidBlock2D` makes it: a group norm before, the input added after (Vaswani et al. 2017, arXiv:1706.03762).

use crate::error::Result;
use crate::models::attention_processor::ProcessorSetting;
use crate::nn::{FusedLinear, GroupNorm, Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use std::sync::Arc;
use tch::Tensor;

/// Attention of each pixel to all pixels.
#[derive(Debug)]
pub struct Attention {
    node: Node,
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    fused: FusedLinear,
    processor: Arc<ProcessorSetting>,
}

impl Attention {
    /// Reads `group_norm`, `to_q`, `to_k`, `to_v` and `to_out.0`, all with bias.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, channels: i64, heads: i64, groups: i64, eps: f64) -> Result<Self> {
        let group_norm = GroupNorm::new(&scope / "group_norm", groups, channels, eps)?;
        let linear = |scope| Linear::new(scope, channels, channels, true);
        let (to_q, to_k, to_v) = (linear(&scope / "to_q")?, linear(&scope / "to_k")?, linear(&scope / "to_v")?);
        let to_out = linear(&scope / "to_out" / 0)?;
        let processor = ProcessorSetting::new(heads, false, false);
        scope.attach(processor.clone());
        let fused = FusedLinear::default();
        Ok(Self { node: scope.finish::<Self>(), group_norm, to_q, to_k, to_v, to_out, heads, fused, processor })
    }

    /// # Shapes
    /// `[batch, channels, height, width]`, and the same comes out.
    ///
    /// # Errors
    /// If there are not `channels` channels.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[residual]| {
            let pixels = self.group_norm.forward(&residual.f_flatten(2, 3)?)?;
            let pixels = self.attend(&pixels.f_transpose(1, 2)?)?;
            let hidden_states = pixels.f_transpose(-1, -2)?.f_reshape_as(residual)?;
            Ok([hidden_states.f_add(residual)?])
        })?;
        Ok(hidden_states)
    }

    /// `[batch, pixels, channels]`, and the same comes out.
    fn attend(&self, pixels: &Tensor) -> Result<Tensor> {
        let Self { to_q, to_k, to_v, fused, .. } = self;
        let [query, key, value] = match self.processor.is_fused() {
            true => fused.forward([to_q, to_k, to_v], pixels)?,
            false => [to_q.forward(pixels)?, to_k.forward(pixels)?, to_v.forward(pixels)?],
        };
        let (query, key) = (query.split_heads(self.heads)?, key.split_heads(self.heads)?);
        let value = value.split_heads(self.heads)?;
        self.to_out.forward(&self.processor.attend(&query, &key, &value, None)?.merge_heads()?)
    }
}

impl Module for Attention {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Today's name of an attention weight that older files call `query`, `key`, `value` or `proj_attn`; `None` for every
/// other key.
///
/// Such a weight may have the shape of a pointwise convolution, `[channels, channels, 1, 1]`; the numbers are those of
/// `[channels, channels]`.
///
/// # Examples
/// ```
/// use tch_diffusers::models::autoencoders::legacy_key;
/// let today = legacy_key("decoder.mid_block.attentions.0.proj_attn.bias");
/// assert_eq!(today.as_deref(), Some("decoder.mid_block.attentions.0.to_out.0.bias"));
/// assert_eq!(legacy_key("decoder.mid_block.attentions.0.to_q.bias"), None);
/// ```
#[must_use]
pub fn legacy_key(key: &str) -> Option<String> {
    let (module, kind) = key.rsplit_once('.')?;
    let (block, name) = module.rsplit_once('.')?;
    let (list, index) = block.rsplit_once('.')?;
    let in_attentions = list.rsplit('.').next() == Some("attentions") && index.parse::<usize>().is_ok();
    let today = match name {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return None,
    };
    (in_attentions && matches!(kind, "weight" | "bias")).then(|| format!("{block}.{today}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::legacy_key;

    #[test]
    fn only_weights_of_attention_blocks_have_legacy_names() {
        let today = legacy_key("encoder.mid_block.attentions.0.query.weight");
        assert_eq!(today.as_deref(), Some("encoder.mid_block.attentions.0.to_q.weight"));
        assert_eq!(legacy_key("attentions.1.value.bias").as_deref(), Some("attentions.1.to_v.bias"));
        for key in ["encoder.mid_block.attentions.0.group_norm.weight", "text_model.key.weight", "query.weight", "key"]
        {
            assert_eq!(legacy_key(key), None, "{key}");
        }
    }
}
