//! Weights in the layout of the kernels that compute with them.

use super::{is_layerwise_casting_active, refuse_if_offloaded};
use crate::error::{Error, Result};
use crate::nn::{Node, set_weights_prepack, weights_prepack};

/// Has the convolutions at or below `module` keep their weights in oneDNN's own layout: see
/// [`PackedConv2d`](crate::torch::PackedConv2d).
///
/// # Errors
/// [`Error::Argument`] while weights come and go, with offloading or layerwise casting: a copy that stays would undo what
/// they save.
pub fn enable_weights_prepack(module: &Node) -> Result<()> {
    refuse_if_offloaded(module, "weights cannot be packed")?;
    if is_layerwise_casting_active(module) {
        let text = "weights cannot be packed while layerwise casting is on: switch it off first";
        return Err(Error::Argument(text.into()));
    }
    set_weights_prepack(module, true);
    Ok(())
}

/// Refuses what lets weights come and go, where a copy of them stays.
pub(crate) fn refuse_if_prepacked(module: &Node, what: &str) -> Result<()> {
    match weights_prepack(module) {
        None => Ok(()),
        Some(_) => Err(Error::Argument(format!("{what} while weights are packed: call disable_weights_prepack first"))),
    }
}
