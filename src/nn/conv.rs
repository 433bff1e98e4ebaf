//! Convolution over pictures.

use super::{Module, Node, Param, Scope};
use crate::error::Result;
use crate::torch::{PackedConv2d, conv2d_winograd};
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

/// The ways of a convolution, shared with whoever walks the tree.
#[derive(Debug)]
struct Ways {
    config: Conv2dConfig,
    winograd: AtomicBool,
    prepacked: AtomicBool,
    packed: PackedConv2d,
}

fn convolutions(module: &Node) -> Vec<Arc<Ways>> {
    module.walk().iter().filter_map(Node::setting::<Ways>).collect()
}

/// How the convolution `module` slides; none for another module.
pub(super) fn conv2d_config(module: &Node) -> Option<Conv2dConfig> {
    module.setting::<Ways>().map(|ways| ways.config)
}

/// Has the convolutions at or below `module` that can be computed by [`conv2d_winograd`] be so, or no longer.
pub fn set_use_winograd(module: &Node, winograd: bool) {
    for ways in convolutions(module) {
        // Others cannot be computed in fewer multiplications.
        ways.winograd.store(winograd && ways.config == Conv2dConfig::SAME, Ordering::Relaxed);
    }
}

/// Whether the convolution `module` may be computed by [`conv2d_winograd`].
#[must_use]
pub fn uses_winograd(module: &Node) -> bool {
    module.setting::<Ways>().is_some_and(|ways| ways.winograd.load(Ordering::Relaxed))
}

/// Has the convolutions at or below `module` keep their weights in oneDNN's layout from their next forward on, or no
/// longer: see [`PackedConv2d`]. The pages of weights that are mapped from a file are given back when they are packed.
pub fn set_weights_prepack(module: &Node, prepack: bool) {
    for ways in convolutions(module) {
        ways.prepacked.store(prepack, Ordering::Relaxed);
        ways.packed.clear();
    }
}

/// Whether a convolution at or below `module` keeps its weight in oneDNN's layout, and what the copies take, in bytes.
#[must_use]
pub fn weights_prepack(module: &Node) -> Option<i64> {
    let prepacked = convolutions(module).into_iter().filter(|ways| ways.prepacked.load(Ordering::Relaxed));
    prepacked.map(|ways| ways.packed.bytes()).reduce(std::ops::Add::add)
}

/// The twin of `torch.nn.Conv2d` with one group and a bias.
#[derive(Debug)]
pub struct Conv2d {
    node: Node,
    weight: Param,
    bias: Option<Param>,
    config: Conv2dConfig,
    ways: Arc<Ways>,
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
        let ways = Arc::new(Ways {
            config,
            winograd: AtomicBool::new(false),
            prepacked: AtomicBool::new(false),
            packed: PackedConv2d::default(),
        });
        scope.attach(ways.clone());
        Self { node: scope.finish::<Self>(), weight, bias, config, ways }
    }

    /// # Shapes
    /// `[batch, inputs, height, width]` to `[batch, outputs, height', width']`.
    ///
    /// # Errors
    /// If there are not `inputs` channels, or the kernel is larger than the padded picture.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| Ok([self.convolve(hidden_states)?]))?;
        Ok(hidden_states)
    }

    fn convolve(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let Conv2dConfig { stride, padding, .. } = self.config;
        let (weight, bias) = (self.weight.get(), self.bias.as_ref().map(Param::get));
        if self.ways.winograd.load(Ordering::Relaxed)
            && let Some(output) = conv2d_winograd(hidden_states, &weight, bias.as_ref())?
        {
            return Ok(output);
        }
        if self.ways.prepacked.load(Ordering::Relaxed)
            && let Some((output, anew)) =
                self.ways.packed.conv2d(hidden_states, &weight, bias.as_ref(), stride, padding)?
        {
            if anew && let Some(origin) = self.weight.origin() {
                origin.release()?;
            }
            return Ok(output);
        }
        Ok(hidden_states.f_conv2d(&weight, bias, [stride, stride], [padding, padding], [1, 1], 1)?)
    }
}

impl Module for Conv2d {
    fn node(&self) -> &Node {
        &self.node
    }
}
