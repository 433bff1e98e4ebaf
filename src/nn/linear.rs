//! The affine map.

use super::{Module, Node, Param, Scope};
use crate::error::Result;
use tch::Tensor;

/// `x W^T + b`, the twin of `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    node: Node,
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// Reads `weight` `[outputs, inputs]` and, if `bias`, `bias` `[outputs]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, inputs: i64, outputs: i64, bias: bool) -> Result<Self> {
        let weight = scope.param("weight", &[outputs, inputs])?;
        let bias = bias.then(|| scope.param("bias", &[outputs])).transpose()?;
        Ok(Self { node: scope.finish::<Self>(), weight, bias })
    }

    /// # Shapes
    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// If the last dimension is not `inputs`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            Ok([hidden_states.f_linear(&self.weight.get(), self.bias.as_ref().map(Param::get))?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for Linear {
    fn node(&self) -> &Node {
        &self.node
    }
}
