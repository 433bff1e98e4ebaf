//! Halving the size of a picture.
//!
//! Mirrors `Downsample2D` of `diffusers/models/downsampling.py` (0.42.1), without its norms, which no model here has.

use crate::error::{Error, Result};
use crate::nn::{Conv2d, Conv2dConfig, Module, Node, Scope};
use tch::Tensor;

/// Halves height and width, by a convolution of stride 2 or by averaging squares of four pixels.
#[derive(Debug)]
pub struct Downsample2D {
    node: Node,
    conv: Option<Conv2d>,
    channels: i64,
    padding: i64,
}

impl Downsample2D {
    /// Averages; there are no weights.
    #[must_use]
    pub fn new(scope: Scope<'_>, channels: i64) -> Self {
        Self { node: scope.finish::<Self>(), conv: None, channels, padding: 0 }
    }

    /// A convolution, `conv`, of kernel 3 with `padding` zeros on each side. A `padding` of 0 stands for one row below
    /// and one column to the right, as the VAE's encoder has it.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn with_conv(scope: Scope<'_>, channels: i64, out_channels: i64, padding: i64) -> Result<Self> {
        let conv =
            Conv2d::new(&scope / "conv", channels, out_channels, Conv2dConfig { kernel: 3, stride: 2, padding })?;
        Ok(Self { node: scope.finish::<Self>(), conv: Some(conv), channels, padding })
    }

    /// # Shapes
    /// `[batch, channels, height, width]` to `[batch, out_channels, height / 2, width / 2]`. Of an odd size, averaging
    /// and a padding of 0 round the half down, other paddings round it up.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not four dimensions or not `channels` channels.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            check_channels(hidden_states, self.channels)?;
            let Some(conv) = &self.conv else {
                return Ok([hidden_states.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None)?]);
            };
            Ok([match self.padding {
                0 => conv.forward(&hidden_states.f_constant_pad_nd([0, 1, 0, 1])?)?,
                _ => conv.forward(hidden_states)?,
            }])
        })?;
        Ok(hidden_states)
    }
}

impl Module for Downsample2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Refuses a tensor that is not `[batch, channels, height, width]`.
pub(super) fn check_channels(hidden_states: &Tensor, channels: i64) -> Result<()> {
    match hidden_states.size()[..] {
        [_, found, _, _] if found == channels => Ok(()),
        ref size => Err(Error::Shape(format!("expected [batch, {channels}, height, width], got {size:?}"))),
    }
}
