//! Doubling the size of a picture.
//!
//! Mirrors `Upsample2D` of `diffusers/models/upsampling.py` (0.42.1), without its norms and its transposed convolution,
//! which no model here has.

use super::downsampling::check_channels;
use crate::error::Result;
use crate::nn::{Conv2d, Conv2dConfig, Module, Node, Scope};
use tch::Tensor;

/// Repeats each pixel, by default twice both ways, and may convolve what comes out.
#[derive(Debug)]
pub struct Upsample2D {
    node: Node,
    conv: Option<Conv2d>,
    channels: i64,
}

impl Upsample2D {
    /// Repeats pixels only; there are no weights.
    #[must_use]
    pub fn new(scope: Scope<'_>, channels: i64) -> Self {
        Self { node: scope.finish::<Self>(), conv: None, channels }
    }

    /// Repeats pixels, then a convolution, `conv`, of kernel 3 that keeps the size.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn with_conv(scope: Scope<'_>, channels: i64, out_channels: i64) -> Result<Self> {
        let conv = Conv2d::new(&scope / "conv", channels, out_channels, Conv2dConfig::SAME)?;
        Ok(Self { node: scope.finish::<Self>(), conv: Some(conv), channels })
    }

    /// Upsamples to `output_size`, height and width in pixels; `None` doubles both.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to `[batch, out_channels, height', width']`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if there are not four dimensions or not `channels` channels.
    pub fn forward(&self, hidden_states: &Tensor, output_size: Option<[i64; 2]>) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            check_channels(hidden_states, self.channels)?;
            let hidden_states = repeat_pixels(hidden_states, output_size)?;
            Ok([match &self.conv {
                Some(conv) => conv.forward(&hidden_states)?,
                None => hidden_states,
            }])
        })?;
        Ok(hidden_states)
    }
}

impl Module for Upsample2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Nearest-neighbour interpolation.
fn repeat_pixels(hidden_states: &Tensor, output_size: Option<[i64; 2]>) -> Result<Tensor> {
    let (batch, _, height, width) = hidden_states.size4()?;
    let factor = output_size.map_or(2.0, |[to_height, to_width]| {
        f64::max(to_height as f64 / height as f64, to_width as f64 / width as f64)
    });
    // libtorch's channels-last kernel fails for large batches and for more than 2^31 elements (pytorch#141831).
    let too_large = batch >= 64 || hidden_states.numel() as f64 * factor > f64::from(2u32.pow(31));
    let hidden_states = if too_large { hidden_states.f_contiguous()? } else { hidden_states.shallow_clone() };
    Ok(match output_size {
        None => hidden_states.f_upsample_nearest2d_vec(None::<i64>, [2.0, 2.0])?,
        Some(size) => hidden_states.f_upsample_nearest2d(size, None, None)?,
    })
}
