//! Computing in another dtype for a while, with weights that other hooks bring and take away.

use super::layerwise_casting::LayerwiseCasting;
use crate::nn::Node;
use tch::Kind;

const UPCASTING_HOOK: &str = "upcasting";

/// Has `module` compute in a dtype for as long as this lives: each of its modules casts its own weights for the time of its
/// own forward, after whatever brings them there. None of the weights' slots is changed.
#[derive(Debug)]
#[must_use = "the dtype is the old one again where it is dropped"]
pub(crate) struct ComputesIn(Vec<Node>);

impl ComputesIn {
    pub(crate) fn new(module: &Node, kind: Kind) -> Self {
        let with_weights = module.walk().into_iter().filter(|node| !node.own_params().is_empty());
        let nodes: Vec<Node> = with_weights.collect();
        for node in &nodes {
            let params = node.own_params().into_iter().map(|(_, param)| param).collect();
            node.add_hook(UPCASTING_HOOK, LayerwiseCasting::new(params, kind));
        }
        Self(nodes)
    }
}

impl Drop for ComputesIn {
    fn drop(&mut self) {
        for node in &self.0 {
            node.remove_hook(UPCASTING_HOOK);
        }
    }
}
