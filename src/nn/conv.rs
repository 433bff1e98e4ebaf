//! Convolution over pictures.

use super::{Module, Node, Param, Scope};
use crate::error::Result;
use crate::torch::conv2d_winograd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Tensor;

/// How a [`Conv2d`] slides: `kernel` and `stride` and `padding`, all in pixels and the same both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Side of the square kernel.
    pub kernel: i64,
    /// Step from one output pixel to the next.
    pub stride: i64,
    /// Zeros put around the picture on each side.
    pub padding: i64,
}

impl Conv2dConfig {
    /// A kernel of 1: a linear map of each pixel's channels.
    pub const POINTWISE: Self = Self { kernel: 1, stride: 1, padding: 0 };
    /// A kernel of 3 that keeps the picture's size.
    pub const SAME: Self = Self { kernel: 3, stride: 1, padding: 1 };
}

/// Whether a convolution of [`Conv2dConfig::SAME`] may be computed in fewer multiplications.
#[derive(Debug, Default)]
struct Winograd(AtomicBool);

/// Has the convolutions at or below `module` that can be computed by [`conv2d_winograd`] be so, or no longer.
pub fn set_use_winograd(module: &Node, winograd: bool) {
    for setting in module.walk().iter().filter_map(Node::setting::<Winograd>) {
        setting.0.store(winograd, Ordering::Relaxed);
    }
}

/// Whether the convolution `module` may be computed by [`conv2d_winograd`].
#[must_use]
pub fn uses_winograd(module: &Node) -> bool {
    module.setting::<Winograd>().is_some_and(|setting| setting.0.load(Ordering::Relaxed))
}

/// The twin of `torch.nn.Conv2d` with one group and a bias.
#[derive(Debug)]
pub struct Conv2d {
    node: Node,
    weight: Param,
    bias: Option<Param>,
    config: Conv2dConfig,
    winograd: Arc<Winograd>,
}

impl Conv2d {
    /// Reads `weight` `[outputs, inputs, kernel, kernel]` and `bias` `[outputs]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, inputs: i64, outputs: i64, config: Conv2dConfig) -> Result<Self> {
        let weight = scope.param("weight", &[outputs, inputs, config.kernel, config.kernel])?;
        let bias = Some(scope.param("bias", &[outputs])?);
        Ok(Self::finish(scope, weight, bias, config))
    }

    /// As [`Conv2d::new`], without a bias.
    ///
    /// # Errors
    /// If the weight cannot be had.
    pub fn without_bias(scope: Scope<'_>, inputs: i64, outputs: i64, config: Conv2dConfig) -> Result<Self> {
        let weight = scope.param("weight", &[outputs, inputs, config.kernel, config.kernel])?;
        Ok(Self::finish(scope, weight, None, config))
    }

    fn finish(scope: Scope<'_>, weight: Param, bias: Option<Param>, config: Conv2dConfig) -> Self {
        let winograd = Arc::new(Winograd::default());
        if config == Conv2dConfig::SAME {
            scope.attach(winograd.clone());
        }
        Self { node: scope.finish::<Self>(), weight, bias, config, winograd }
    }

    /// # Shapes
    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    ///
    /// # Errors
    /// If there are not `inputs` channels, or the kernel is larger than the padded picture.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let Conv2dConfig { stride, padding, .. } = self.config;
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let bias = self.bias.as_ref().map(Param::get);
            if self.winograd.0.load(Ordering::Relaxed)
                && let Some(output) = conv2d_winograd(hidden_states, &self.weight.get(), bias.as_ref())?
            {
                return Ok([output]);
            }
            Ok([hidden_states.f_conv2d(&self.weight.get(), bias, [stride, stride], [padding, padding], [1, 1], 1)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for Conv2d {
    fn node(&self) -> &Node {
        &self.node
    }
}
