//! The affine map.

use super::{Module, Node, Param, Scope};
use crate::error::Result;
use tch::{Kind, Tensor};

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

    /// The dtype that the map computes in: what a hook casts its weight to, or else the weight's own.
    #[must_use]
    pub fn dtype(&self) -> Kind {
        self.node.dtype()
    }

    pub(super) fn weight(&self) -> &Param {
        &self.weight
    }

    pub(super) fn bias(&self) -> Option<&Param> {
        self.bias.as_ref()
    }

    /// # Shapes
    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// If the last dimension is not `inputs`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            Ok([linear(hidden_states, &self.weight.get(), self.bias.as_ref().map(Param::get))?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for Linear {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// `torch.nn.functional.linear` as it is for a weight that requires a gradient, which those of a Python module do.
///
/// For an input that is not contiguous, torch makes one matrix of all its rows if the weight requires a gradient, and
/// else may multiply the items of the batch one by one (`should_fold` in ATen's `LinearAlgebra.cpp`). The two round
/// differently. Weights here require no gradient, so the rows are put together by hand.
pub(super) fn linear(input: &Tensor, weight: &Tensor, bias: Option<Tensor>) -> Result<Tensor> {
    if input.dim() < 3 || input.is_contiguous() {
        return Ok(input.f_linear(weight, bias)?);
    }
    let (outputs, inputs) = weight.size2()?;
    let product = input.f_reshape([-1, inputs])?.f_mm(&weight.f_tr()?)?;
    // The input's shape with `outputs` at its end, of which a trace fixes no more than that.
    let mut size = vec![-1; input.dim()];
    size[input.dim() - 1] = outputs;
    let mut output = product.f_view_as(&input.f_narrow(-1, 0, 1)?.f_expand(size.as_slice(), false)?)?;
    Ok(match bias {
        Some(bias) => output.f_add_(&bias)?,
        None => output,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::{Generator, TensorExt};
    use tch::no_grad;

    #[test]
    fn inputs_that_are_not_contiguous_give_the_bits_of_weights_with_gradient() {
        let mut generator = Generator::cpu(0).unwrap();
        for (batch, tokens, inputs) in [(1, 5, 8), (2, 2, 8), (3, 10, 16), (2, 64, 512)] {
            let weight = generator.randn([inputs, inputs], Kind::Float).unwrap();
            let bias = generator.randn([inputs], Kind::Float).unwrap();
            let input = generator.randn([batch, inputs, tokens], Kind::Float).unwrap().transpose(1, 2);
            let trained = weight.copy().set_requires_grad(true);
            for bias in [None, Some(bias)] {
                let expected = no_grad(|| input.linear(&trained, bias.as_ref()));
                let found = linear(&input, &weight, bias).unwrap();
                assert_eq!(found.max_abs_diff(&expected).unwrap(), 0.0, "{batch} x {tokens} x {inputs}");
            }
        }
    }
}
