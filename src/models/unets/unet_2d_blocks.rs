//! The blocks of UNets: residual blocks, each with a transformer behind it or not, and a change of size at the end.
//!
//! Mirrors `diffusers/models/unets/unet_2d_blocks.py` (0.42.1): Ronneberger et al. 2015, arXiv:1505.04597, with the
//! conditioning of Rombach et al. 2022, arXiv:2112.10752.

mod down;
mod mid;
mod up;

pub use down::{CrossAttnDownBlock2D, DownBlock2D};
pub use mid::{UNetMidBlock2D, UNetMidBlock2DCrossAttn};
pub use up::{CrossAttnUpBlock2D, UpBlock2D, UpChannels};

pub(super) use down::DownBlock;
pub(super) use mid::MidBlock;
pub(super) use up::UpBlock;

use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::models::resnet::{ResnetBlock2D, ResnetBlock2DConfig, TimeEmbeddingNorm};
use crate::models::transformers::{Transformer2DConfig, Transformer2DModel};
use crate::nn::{Activation, Scope};
use tch::Tensor;

/// What a block of a UNet is made with.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockConfig {
    /// Channels that come out.
    pub out_channels: i64,
    /// Channels of the time embedding.
    pub temb_channels: i64,
    /// Number of residual blocks; in the middle there is one more.
    pub num_layers: usize,
    /// What the norms add to the variance.
    pub resnet_eps: f64,
    /// The activation of the residual blocks.
    pub resnet_act_fn: Activation,
    /// Groups of the norms.
    pub resnet_groups: i64,
    /// How the time embedding enters the residual blocks.
    pub resnet_time_scale_shift: TimeEmbeddingNorm,
    /// What the residual blocks divide their output by.
    pub output_scale_factor: f64,
    /// The transformers, for the blocks that have some.
    pub transformer: TransformerConfig,
}

/// What the transformers of a block are made with.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Number of heads; it divides the block's channels.
    pub num_attention_heads: i64,
    /// Transformer blocks behind each residual block.
    pub layers_per_block: OneOrMany<i64>,
    /// Channels of the text's tokens.
    pub cross_attention_dim: i64,
    /// Whether the tokens are projected by linear layers instead of convolutions.
    pub use_linear_projection: bool,
    /// Whether the tokens look at the text only.
    pub only_cross_attention: bool,
    /// Whether attention in slices computes its scores in float32.
    pub upcast_attention: bool,
}

impl BlockConfig {
    /// A residual block at `scope` that takes `in_channels`.
    fn resnet(&self, scope: Scope<'_>, in_channels: i64) -> Result<ResnetBlock2D> {
        let config = ResnetBlock2DConfig {
            temb_channels: Some(self.temb_channels),
            groups: self.resnet_groups,
            eps: self.resnet_eps,
            non_linearity: self.resnet_act_fn,
            // `Conditioning::temb` has been through it, once for all residual blocks.
            skip_time_act: true,
            time_embedding_norm: self.resnet_time_scale_shift,
            output_scale_factor: self.output_scale_factor,
            ..ResnetBlock2DConfig::new(in_channels, self.out_channels)
        };
        ResnetBlock2D::new(scope, config)
    }

    /// `count` transformers below `scope`.
    fn transformers(&self, scope: &Scope<'_>, count: usize) -> Result<Vec<Transformer2DModel>> {
        let TransformerConfig { num_attention_heads, cross_attention_dim, .. } = self.transformer;
        if num_attention_heads < 1 || self.out_channels % num_attention_heads != 0 {
            return Err(Error::Config(format!(
                "{} channels do not divide into `attention_head_dim` = {num_attention_heads} heads",
                self.out_channels
            )));
        }
        let attentions = scope / "attentions";
        let layers = self.transformer.layers_per_block.spread("transformer_layers_per_block", count)?;
        let make = |(index, num_layers)| {
            let config = Transformer2DConfig {
                num_attention_heads,
                attention_head_dim: self.out_channels / num_attention_heads,
                num_layers,
                norm_num_groups: self.resnet_groups,
                cross_attention_dim: Some(cross_attention_dim),
                use_linear_projection: self.transformer.use_linear_projection,
                only_cross_attention: self.transformer.only_cross_attention,
                upcast_attention: self.transformer.upcast_attention,
            };
            Transformer2DModel::new(&attentions / index, config)
        };
        layers.into_iter().enumerate().map(make).collect()
    }
}

/// What every block is given beside the picture.
#[derive(Clone, Copy, Debug)]
pub struct Conditioning<'a> {
    /// The time embedding after the activation of the residual blocks, `[batch, temb_channels]`.
    // Differs from diffusers: there each residual block applies the activation anew, to the same effect.
    pub temb: &'a Tensor,
    /// The text, `[batch, keys, cross_attention_dim]`.
    pub encoder_hidden_states: &'a Tensor,
    /// Added to the scores of the attention to the pixels, `[batch, 1, 1, height * width]`.
    pub attention_mask: Option<&'a Tensor>,
    /// Added to the scores of the attention to the text, `[batch, 1, 1, keys]`.
    pub encoder_attention_mask: Option<&'a Tensor>,
    /// Whether transformers lay their pixels out row by row even where they come with their channels last, as diffusers'
    /// do. A sample that comes so, such as the latents of a picture, is then rounded as there.
    pub row_major: bool,
}

impl<'a> Conditioning<'a> {
    /// The same masks, with what a hook put in the place of the rest.
    fn with(&self, temb: &'a Tensor, encoder_hidden_states: &'a Tensor) -> Self {
        Self { temb, encoder_hidden_states, ..*self }
    }

    fn attend(&self, attention: &Transformer2DModel, hidden_states: &Tensor) -> Result<Tensor> {
        let masks = [self.attention_mask, self.encoder_attention_mask];
        attention.attend(hidden_states, self.encoder_hidden_states, masks, self.row_major)
    }
}

/// Old configurations call `DownBlock2D` `UNetResDownBlock2D`, and so on.
fn current_name(block_type: &str) -> &str {
    block_type.strip_prefix("UNetRes").unwrap_or(block_type)
}
