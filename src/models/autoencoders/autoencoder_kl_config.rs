//! The settings of the variational autoencoder.
//!
//! Mirrors `AutoencoderKL.__init__` of `diffusers/models/autoencoders/autoencoder_kl.py` (0.42.1).

use super::unet_2d_blocks::BlockConfig;
use crate::configuration_utils::{ConfigMap, OneOrMany};
use crate::error::{Error, Result};
use crate::nn::Activation;
use serde::{Deserialize, Serialize};

/// What an [`AutoencoderKL`](super::AutoencoderKL) is made with: the keys of its `config.json`. The defaults are
/// diffusers'.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct AutoencoderKLConfig {
    /// Channels of the picture that is encoded; 3.
    pub in_channels: i64,
    /// Channels of the picture that is decoded; 3.
    pub out_channels: i64,
    /// The encoder's blocks; `DownEncoderBlock2D` alone is supported.
    pub down_block_types: Vec<String>,
    /// The decoder's blocks; `UpDecoderBlock2D` alone is supported.
    pub up_block_types: Vec<String>,
    /// Channels of each block, the picture's side first; 64.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks in each block of the encoder, one less than in the decoder's; 1.
    pub layers_per_block: usize,
    /// The activation of the residual blocks; SiLU.
    pub act_fn: Activation,
    /// Channels of the latents; 4.
    pub latent_channels: i64,
    /// Groups of the norms; 32.
    pub norm_num_groups: i64,
    /// Side of the pictures it was trained on, in pixels, and so of the tiles; 32.
    pub sample_size: OneOrMany<i64>,
    /// What latents are multiplied by before they are denoised, and divided by before they are decoded; 0.18215.
    pub scaling_factor: f64,
    /// What is subtracted from latents before they are multiplied by `scaling_factor`.
    pub shift_factor: Option<f64>,
    /// The mean of each channel of the latents, in place of `shift_factor`.
    pub latents_mean: Option<Vec<f64>>,
    /// The standard deviation of each channel of the latents, in place of `scaling_factor`.
    pub latents_std: Option<Vec<f64>>,
    /// Whether the weights overflow in float16, so that pipelines should run it in float32; yes.
    pub force_upcast: bool,
    /// Whether a pointwise convolution follows the encoder; yes.
    pub use_quant_conv: bool,
    /// Whether a pointwise convolution precedes the decoder; yes.
    pub use_post_quant_conv: bool,
    /// Whether there is attention between the smallest blocks; yes.
    pub mid_block_add_attention: bool,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for AutoencoderKLConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec!["DownEncoderBlock2D".into()],
            up_block_types: vec!["UpDecoderBlock2D".into()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: OneOrMany::One(32),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            other: ConfigMap::new(),
        }
    }
}

impl AutoencoderKLConfig {
    /// How many pixels, along each side, one latent stands for.
    #[must_use]
    pub fn vae_scale_factor(&self) -> i64 {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// The side of `sample_size`, the height if there are two.
    ///
    /// # Errors
    /// [`Error::Config`] if it is an empty list.
    pub fn sample_side(&self) -> Result<i64> {
        match &self.sample_size {
            OneOrMany::One(side) => Ok(*side),
            OneOrMany::Many(sides) => {
                sides.first().copied().ok_or_else(|| Error::Config("`sample_size` is an empty list".into()))
            }
        }
    }

    /// Channels of the first and of the last block.
    pub(super) fn outer_channels(&self) -> Result<(i64, i64)> {
        match self.block_out_channels[..] {
            [] => Err(Error::Config("`block_out_channels` is empty".into())),
            [only] => Ok((only, only)),
            [first, .., last] => Ok((first, last)),
        }
    }

    pub(super) fn block(&self) -> BlockConfig {
        BlockConfig { groups: self.norm_num_groups, eps: 1e-6, act_fn: self.act_fn }
    }

    /// Refuses what cannot be built.
    pub(super) fn check(&self) -> Result<()> {
        for (key, types, supported) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if let Some(other) = types.iter().find(|name| *name != supported) {
                return Err(Error::Unsupported(format!("`{key}` of `{other}`: supported is {supported}")));
            }
            if types.len() != self.block_out_channels.len() {
                let (types, blocks) = (types.len(), self.block_out_channels.len());
                return Err(Error::Config(format!("`{key}` has {types} values for {blocks} of `block_out_channels`")));
            }
        }
        let groups = self.norm_num_groups;
        match self.block_out_channels.iter().find(|&&channels| groups <= 0 || channels % groups != 0) {
            Some(channels) => {
                let message =
                    format!("`block_out_channels` of {channels} do not divide by `norm_num_groups`, {groups}");
                Err(Error::Config(message))
            }
            None => Ok(()),
        }
    }
}
