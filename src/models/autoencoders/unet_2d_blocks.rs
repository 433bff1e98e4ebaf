//! The blocks of the VAE's encoder and decoder.
//!
//! Mirrors `DownEncoderBlock2D`, `UpDecoderBlock2D` and `UNetMidBlock2D` of `diffusers/models/unets/unet_2d_blocks.py`
//! (0.42.1) as the VAE makes them: without a time embedding, and with one attention head as wide as the block.

use super::attention::Attention;
use crate::error::Result;
use crate::models::downsampling::Downsample2D;
use crate::models::resnet::{ResnetBlock2D, ResnetBlock2DConfig};
use crate::models::upsampling::Upsample2D;
use crate::nn::{Activation, Module, Node, Scope};
use tch::Tensor;

/// What the VAE's blocks have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockConfig {
    /// Groups of the norms: `norm_num_groups`.
    pub groups: i64,
    /// What the norms add to the variance.
    pub eps: f64,
    /// The activation of the residual blocks.
    pub act_fn: Activation,
}

impl BlockConfig {
    fn resnet(self, scope: Scope<'_>, in_channels: i64, out_channels: i64) -> Result<ResnetBlock2D> {
        let Self { groups, eps, act_fn } = self;
        let config = ResnetBlock2DConfig::new(in_channels, out_channels);
        ResnetBlock2D::new(scope, ResnetBlock2DConfig { groups, eps, non_linearity: act_fn, ..config })
    }

    /// `num_layers` residual blocks, the first of which goes from `in_channels` to `out_channels`.
    fn resnets(self, scope: &Scope<'_>, channels: [i64; 2], num_layers: usize) -> Result<Vec<ResnetBlock2D>> {
        let [in_channels, out_channels] = channels;
        let from = |layer| if layer == 0 { in_channels } else { out_channels };
        (0..num_layers).map(|layer| self.resnet(scope / "resnets" / layer, from(layer), out_channels)).collect()
    }
}

/// Runs residual blocks without a time embedding one after the other.
fn run(resnets: &[ResnetBlock2D], hidden_states: &Tensor) -> Result<Tensor> {
    resnets.iter().try_fold(hidden_states.shallow_clone(), |hidden_states, resnet| resnet.forward(&hidden_states, None))
}

/// Residual blocks, then half the size.
#[derive(Debug)]
pub struct DownEncoderBlock2D {
    node: Node,
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Downsample2D>,
}

impl DownEncoderBlock2D {
    /// Reads `resnets.*` and, if `add_downsample`, `downsamplers.0`. `channels` are those that come in and go out.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(
        scope: Scope<'_>,
        channels: [i64; 2],
        num_layers: usize,
        add_downsample: bool,
        config: BlockConfig,
    ) -> Result<Self> {
        let resnets = config.resnets(&scope, channels, num_layers)?;
        let [_, channels] = channels;
        let make = || Downsample2D::with_conv(&scope / "downsamplers" / 0, channels, channels, 0);
        let downsampler = add_downsample.then(make).transpose()?;
        Ok(Self { node: scope.finish::<Self>(), resnets, downsampler })
    }

    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, out_channels, height / 2, width / 2]`, rounded down; the size
    /// stays without a downsampler.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let hidden_states = run(&self.resnets, hidden_states)?;
            Ok([match &self.downsampler {
                Some(downsampler) => downsampler.forward(&hidden_states)?,
                None => hidden_states,
            }])
        })?;
        Ok(hidden_states)
    }
}

impl Module for DownEncoderBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Residual blocks, then twice the size.
#[derive(Debug)]
pub struct UpDecoderBlock2D {
    node: Node,
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

impl UpDecoderBlock2D {
    /// Reads `resnets.*` and, if `add_upsample`, `upsamplers.0`. `channels` are those that come in and go out.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(
        scope: Scope<'_>,
        channels: [i64; 2],
        num_layers: usize,
        add_upsample: bool,
        config: BlockConfig,
    ) -> Result<Self> {
        let resnets = config.resnets(&scope, channels, num_layers)?;
        let [_, channels] = channels;
        let make = || Upsample2D::with_conv(&scope / "upsamplers" / 0, channels, channels);
        let upsampler = add_upsample.then(make).transpose()?;
        Ok(Self { node: scope.finish::<Self>(), resnets, upsampler })
    }

    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, out_channels, height * 2, width * 2]`; the size stays without
    /// an upsampler.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let hidden_states = run(&self.resnets, hidden_states)?;
            Ok([match &self.upsampler {
                Some(upsampler) => upsampler.forward(&hidden_states, None)?,
                None => hidden_states,
            }])
        })?;
        Ok(hidden_states)
    }
}

impl Module for UpDecoderBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Two residual blocks and, between them, attention.
#[derive(Debug)]
pub struct UNetMidBlock2D {
    node: Node,
    attention: Option<Attention>,
    resnets: Vec<ResnetBlock2D>,
}

impl UNetMidBlock2D {
    /// Reads `resnets.0`, `resnets.1` and, if `add_attention`, `attentions.0`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, channels: i64, add_attention: bool, config: BlockConfig) -> Result<Self> {
        let attend = || Attention::new(&scope / "attentions" / 0, channels, 1, config.groups, config.eps);
        let attention = add_attention.then(attend).transpose()?;
        let resnets = config.resnets(&scope, [channels, channels], 2)?;
        Ok(Self { node: scope.finish::<Self>(), attention, resnets })
    }

    /// # Shapes
    /// `[batch, channels, height, width]`, and the same comes out.
    ///
    /// # Errors
    /// If there are not `channels` channels.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let (first, rest) = self.resnets.split_at(1);
            let hidden_states = run(first, hidden_states)?;
            let hidden_states = match &self.attention {
                Some(attention) => attention.forward(&hidden_states)?,
                None => hidden_states,
            };
            Ok([run(rest, &hidden_states)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for UNetMidBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}
