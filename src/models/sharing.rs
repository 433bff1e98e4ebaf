//! A second model over the weights of a first one.
//!
//! diffusers has no twin of this: there, threads take turns with one model.

use super::ModelMixin;
use super::attention_processor::ProcessorSetting;
use crate::error::{Error, Result};
use crate::hooks::{is_layerwise_casting_active, refuse_if_offloaded};
use crate::nn::{Node, SharedWeights, adopt_convolutions};

/// A model built like `model` over its weights, with the same settings.
pub(crate) fn share<M: ModelMixin>(model: &M) -> Result<M> {
    let node = model.node();
    refuse_if_offloaded(node, "weights cannot be shared")?;
    if is_layerwise_casting_active(node) {
        let text = "weights cannot be shared while layerwise casting is on: switch it off first";
        return Err(Error::Argument(text.into()));
    }
    let second = M::from_weights(model.config().clone(), &SharedWeights::of(node)?)?;
    adopt_settings(second.node(), node);
    Ok(second)
}

/// Gives the modules of `to` the settings of those of `from`, a model built alike.
fn adopt_settings(to: &Node, from: &Node) {
    adopt_convolutions(to, from);
    for (own, other) in to.walk().iter().zip(from.walk()) {
        if let Some((own, other)) = own.setting::<ProcessorSetting>().zip(other.setting::<ProcessorSetting>()) {
            own.adopt(&other);
        }
    }
}
