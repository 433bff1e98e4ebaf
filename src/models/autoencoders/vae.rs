//! Encoder, decoder, and the distribution between them.
//!
//! Mirrors `Encoder`, `Decoder` and `DiagonalGaussianDistribution` of `diffusers/models/autoencoders/vae.py` (0.42.1).
//! Rombach et al. 2022, arXiv:2112.10752; Kingma and Welling 2014, arXiv:1312.6114.

use super::autoencoder_kl_config::AutoencoderKLConfig;
use super::unet_2d_blocks::{DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D};
use crate::error::Result;
use crate::nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Module, Node, Scope};
use crate::torch::{Generator, NumberExt, TensorExt, randn_tensor};
use tch::Tensor;

/// From a picture to the parameters of the latents' distribution.
#[derive(Debug)]
pub struct Encoder {
    node: Node,
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock2D>,
    mid_block: UNetMidBlock2D,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// Reads `conv_in`, `down_blocks.*`, `mid_block`, `conv_norm_out` and `conv_out`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: &AutoencoderKLConfig) -> Result<Self> {
        let (first, last) = config.outer_channels()?;
        let block = config.block();
        let conv_in = Conv2d::new(&scope / "conv_in", config.in_channels, first, Conv2dConfig::SAME)?;
        let outputs = &config.block_out_channels;
        let inputs = std::iter::once(&first).chain(outputs);
        let down = |(i, (&input, &output)): (usize, (&i64, &i64))| {
            let scope = &scope / "down_blocks" / i;
            DownEncoderBlock2D::new(scope, [input, output], config.layers_per_block, i + 1 < outputs.len(), block)
        };
        let down_blocks = inputs.zip(outputs).enumerate().map(down).collect::<Result<_>>()?;
        let mid_block = UNetMidBlock2D::new(&scope / "mid_block", last, config.mid_block_add_attention, block)?;
        let conv_norm_out = GroupNorm::new(&scope / "conv_norm_out", block.groups, last, block.eps)?;
        let conv_out = Conv2d::new(&scope / "conv_out", last, 2 * config.latent_channels, Conv2dConfig::SAME)?;
        Ok(Self { node: scope.finish::<Self>(), conv_in, down_blocks, mid_block, conv_norm_out, conv_out })
    }

    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, 2 * latent_channels, height', width']`, halved, and rounded
    /// down, for each block but the last.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, sample: &Tensor) -> Result<Tensor> {
        let [sample] = self.node.call([sample], |[sample]| {
            let sample = self.conv_in.forward(sample)?;
            let sample = self.down_blocks.iter().try_fold(sample, |sample, block| block.forward(&sample))?;
            let sample = self.mid_block.forward(&sample)?;
            // SiLU here, whatever `act_fn` says.
            let sample = Activation::Silu.forward_into(self.conv_norm_out.forward(&sample)?)?;
            Ok([self.conv_out.forward(&sample)?])
        })?;
        Ok(sample)
    }
}

impl Module for Encoder {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// From latents to a picture.
#[derive(Debug)]
pub struct Decoder {
    node: Node,
    conv_in: Conv2d,
    mid_block: UNetMidBlock2D,
    up_blocks: Vec<UpDecoderBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Reads `conv_in`, `up_blocks.*`, `mid_block`, `conv_norm_out` and `conv_out`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: &AutoencoderKLConfig) -> Result<Self> {
        let (first, last) = config.outer_channels()?;
        let block = config.block();
        let conv_in = Conv2d::new(&scope / "conv_in", config.latent_channels, last, Conv2dConfig::SAME)?;
        let outputs: Vec<_> = config.block_out_channels.iter().rev().copied().collect();
        let inputs = std::iter::once(&last).chain(&outputs);
        let up = |(i, (&input, &output)): (usize, (&i64, &i64))| {
            let scope = &scope / "up_blocks" / i;
            UpDecoderBlock2D::new(scope, [input, output], config.layers_per_block + 1, i + 1 < outputs.len(), block)
        };
        let up_blocks = inputs.zip(&outputs).enumerate().map(up).collect::<Result<_>>()?;
        let mid_block = UNetMidBlock2D::new(&scope / "mid_block", last, config.mid_block_add_attention, block)?;
        let conv_norm_out = GroupNorm::new(&scope / "conv_norm_out", block.groups, first, block.eps)?;
        let conv_out = Conv2d::new(&scope / "conv_out", first, config.out_channels, Conv2dConfig::SAME)?;
        Ok(Self { node: scope.finish::<Self>(), conv_in, mid_block, up_blocks, conv_norm_out, conv_out })
    }

    /// # Shapes
    /// `[batch, latent_channels, height, width]` to `[batch, out_channels, height', width']`, doubled for each block
    /// but the last.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, sample: &Tensor) -> Result<Tensor> {
        let [sample] = self.node.call([sample], |[sample]| {
            let sample = self.mid_block.forward(&self.conv_in.forward(sample)?)?;
            let sample = self.up_blocks.iter().try_fold(sample, |sample, block| block.forward(&sample))?;
            // SiLU here, whatever `act_fn` says.
            let sample = Activation::Silu.forward_into(self.conv_norm_out.forward(&sample)?)?;
            Ok([self.conv_out.forward(&sample)?])
        })?;
        Ok(sample)
    }
}

impl Module for Decoder {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// What the encoder gives: each latent normally distributed, independent of the others.
#[derive(Debug)]
pub struct DiagonalGaussianDistribution {
    mean: Tensor,
    logvar: Tensor,
    std: Tensor,
}

impl DiagonalGaussianDistribution {
    /// Mean and logarithm of the variance, one after the other along the channels.
    ///
    /// # Shapes
    /// `[batch, 2 * latent_channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the channels have no halves.
    pub fn new(parameters: &Tensor) -> Result<Self> {
        let [mean, logvar] = parameters.chunks::<2>(1)?;
        let logvar = logvar.clamped(-30.0, 20.0)?;
        let std = logvar.times(0.5)?.f_exp()?;
        Ok(Self { mean, logvar, std })
    }

    /// The mean.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The natural logarithm of the variance, held between -30 and 20.
    pub fn logvar(&self) -> &Tensor {
        &self.logvar
    }

    /// The standard deviation.
    pub fn std(&self) -> &Tensor {
        &self.std
    }

    /// The likeliest latents: the mean.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// Latents drawn at random: by one generator for the whole batch, one for each item, or libtorch's global one if
    /// `generators` is empty.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if there are several generators, but not one per item.
    pub fn sample(&self, generators: &mut [Generator]) -> Result<Tensor> {
        let noise = randn_tensor(&self.mean.size(), generators, self.mean.kind(), self.mean.device())?;
        Ok(self.mean.f_add(&self.std.f_mul(&noise)?)?)
    }
}
