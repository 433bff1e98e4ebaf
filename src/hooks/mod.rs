//! Hooks that come with the library: what happens around the forwards of models that know nothing of it.

mod compiled;
mod cpu_offload;
mod group_offloading;
mod layerwise_casting;
mod prepack;
mod residency;
mod restore;
mod transport;
mod upcasting;

pub(crate) use compiled::{COMPILED_HOOK, MarkCompiled, refuse_bypassed_hooks, refuse_if_compiled, refuse_inner_hooks};
pub use cpu_offload::{ModelOffload, apply_sequential_offloading, remove_sequential_offloading};
pub use group_offloading::{
    GroupOffloading, GroupOffloadingType, OffloadGroup, apply_group_offloading, apply_group_offloading_on,
    remove_group_offloading,
};
pub use layerwise_casting::{
    DEFAULT_SKIP_MODULES_PATTERN, LAYERWISE_CASTING_HOOK, SkipModules, apply_layerwise_casting,
    disable_layerwise_casting, is_layerwise_casting_active, set_compute_dtype,
};
pub use prepack::enable_weights_prepack;
pub(crate) use prepack::refuse_if_prepacked;
pub(crate) use residency::fills_its_memory;
pub use restore::restore_weights;
pub use transport::{Lane, Step, StreamDevice, TransferDevice};
pub(crate) use upcasting::ComputesIn;

use crate::error::{Error, Result};
use crate::nn::Node;

const GROUP_OFFLOADING: &str = "group_offloading";
const GROUP_OFFLOADING_ROOT: &str = "group_offloading_root";
const MODEL_OFFLOADING: &str = "model_cpu_offload";
const SEQUENTIAL_OFFLOADING: &str = "sequential_cpu_offload";

/// Refuses what does not go together with an offloading that is at work at or below `node`.
///
/// # Errors
/// [`Error::Argument`] naming the offloading, and what could not be done.
pub fn refuse_if_offloaded(node: &Node, what: &str) -> Result<()> {
    match offloading(node) {
        None => Ok(()),
        Some(name) => Err(Error::Argument(format!("{what} while {name} is on: switch it off first"))),
    }
}

/// What offloading is at work at or below `node`, in words.
pub(crate) fn offloading(node: &Node) -> Option<&'static str> {
    let named = |name: String| match name.as_str() {
        GROUP_OFFLOADING | GROUP_OFFLOADING_ROOT => Some("group offloading"),
        MODEL_OFFLOADING => Some("model offloading"),
        SEQUENTIAL_OFFLOADING => Some("sequential offloading"),
        _ => None,
    };
    node.walk().iter().flat_map(Node::hook_names).find_map(named)
}
