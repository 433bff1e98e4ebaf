//! Building the UNet from its configuration.

use super::conditions::Conditions;
use super::{UNet2DConditionConfig, UNet2DConditionModel};
use crate::configuration_utils::OneOrMany;
use crate::error::{Error, Result};
use crate::models::unets::unet_2d_blocks::{BlockConfig, DownBlock, MidBlock, TransformerConfig, UpBlock, UpChannels};
use crate::nn::{Conv2d, Conv2dConfig, GroupNorm, Scope};

impl UNet2DConditionModel {
    /// Builds the model, its weights coming from `scope`, in the order of diffusers' parameters.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Unsupported`], naming the key that asks for what cannot be; or if the weights
    /// cannot be had.
    pub fn new(config: UNet2DConditionConfig, scope: Scope<'_>) -> Result<Self> {
        config.check()?;
        let plan = Plan::new(&config)?;
        let first = config.block_out_channels.first().copied().unwrap_or_default();
        let conv_in = Conv2d::new(&scope / "conv_in", config.in_channels, first, same(config.conv_in_kernel))?;
        let conditions = Conditions::new(&scope, &config)?;
        let down_blocks = plan.down_blocks(&scope)?;
        let up_blocks = plan.up_blocks(&scope)?;
        let mid_block = plan.mid_block(&scope)?;
        let conv_norm_out = GroupNorm::new(&scope / "conv_norm_out", plan.groups, first, config.norm_eps)?;
        let conv_out = Conv2d::new(&scope / "conv_out", first, config.out_channels, same(config.conv_out_kernel))?;
        Ok(Self {
            node: scope.finish::<Self>(),
            conv_in,
            conditions,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_act: config.act_fn,
            conv_out,
            config,
        })
    }
}

/// A kernel that keeps the size of the picture, if its side is odd.
fn same(kernel: i64) -> Conv2dConfig {
    Conv2dConfig { kernel, stride: 1, padding: (kernel - 1) / 2 }
}

/// The configuration with a value for each block, on the way down unless the name says otherwise.
struct Plan<'a> {
    config: &'a UNet2DConditionConfig,
    groups: i64,
    layers: Vec<i64>,
    heads: Vec<i64>,
    cross_attention_dim: Vec<i64>,
    only_cross_attention: Vec<bool>,
    transformer_layers: Vec<OneOrMany<i64>>,
    transformer_layers_up: Vec<OneOrMany<i64>>,
}

impl<'a> Plan<'a> {
    fn new(config: &'a UNet2DConditionConfig) -> Result<Self> {
        let blocks = config.block_out_channels.len();
        let groups =
            config.norm_num_groups.ok_or_else(|| Error::Config("`norm_num_groups` must not be null".into()))?;
        let layers = config.layers_per_block.spread("layers_per_block", blocks)?;
        if let Some(layers) = layers.iter().find(|layers| **layers < 1) {
            return Err(Error::Config(format!("`layers_per_block` = {layers} leaves a block empty")));
        }
        let [transformer_layers, transformer_layers_up] = config.transformer_layers()?;
        Ok(Self {
            config,
            groups,
            layers,
            heads: config.attention_head_dim.spread("attention_head_dim", blocks)?,
            cross_attention_dim: config.cross_attention_dim.spread("cross_attention_dim", blocks)?,
            only_cross_attention: config.only_cross_attention.spread("only_cross_attention", blocks)?,
            transformer_layers,
            transformer_layers_up,
        })
    }

    fn blocks(&self) -> usize {
        self.config.block_out_channels.len()
    }

    /// What the block number `index` on the way down is made with.
    fn block(&self, index: usize) -> BlockConfig {
        BlockConfig {
            out_channels: self.config.block_out_channels[index],
            temb_channels: self.config.temb_channels(),
            num_layers: self.layers[index] as usize,
            resnet_eps: self.config.norm_eps,
            resnet_act_fn: self.config.act_fn,
            resnet_groups: self.groups,
            resnet_time_scale_shift: self.config.resnet_time_scale_shift,
            output_scale_factor: 1.0,
            transformer: TransformerConfig {
                num_attention_heads: self.heads[index],
                layers_per_block: self.transformer_layers[index].clone(),
                cross_attention_dim: self.cross_attention_dim[index],
                use_linear_projection: self.config.use_linear_projection,
                only_cross_attention: self.only_cross_attention[index],
                upcast_attention: self.config.upcast_attention.unwrap_or(false),
            },
        }
    }

    fn down_blocks(&self, scope: &Scope<'_>) -> Result<Vec<DownBlock>> {
        let scope = scope / "down_blocks";
        let channels = &self.config.block_out_channels;
        let make = |(index, block_type): (usize, &String)| {
            let in_channels = channels[index.saturating_sub(1)];
            let padding = (index + 1 < self.blocks()).then_some(self.config.downsample_padding);
            DownBlock::new(&scope / index, block_type, in_channels, padding, &self.block(index))
        };
        self.config.down_block_types.iter().enumerate().map(make).collect()
    }

    fn up_blocks(&self, scope: &Scope<'_>) -> Result<Vec<UpBlock>> {
        let scope = scope / "up_blocks";
        let channels = &self.config.block_out_channels;
        let make = |(index, block_type): (usize, &String)| {
            // The block on the way down at the same height.
            let twin = self.blocks() - 1 - index;
            let mut config = self.block(twin);
            config.num_layers += 1;
            config.transformer.layers_per_block = self.transformer_layers_up[index].clone();
            let before = channels[(twin + 1).min(self.blocks() - 1)];
            let skip = UpChannels { prev_output_channel: before, in_channels: channels[twin.saturating_sub(1)] };
            UpBlock::new(&scope / index, block_type, skip, twin > 0, &config)
        };
        self.config.up_block_types.iter().enumerate().map(make).collect()
    }

    fn mid_block(&self, scope: &Scope<'_>) -> Result<Option<MidBlock>> {
        let Some(block_type) = &self.config.mid_block_type else { return Ok(None) };
        let mut config = self.block(self.blocks() - 1);
        // In a list of lists the middle, which has one transformer, takes the first number of the last list.
        if let OneOrMany::Many(layers) = &config.transformer.layers_per_block {
            let first = layers.first().copied();
            let first =
                first.ok_or_else(|| Error::Config("`transformer_layers_per_block` ends in an empty list".into()))?;
            config.transformer.layers_per_block = OneOrMany::One(first);
        }
        config.num_layers = 1;
        config.output_scale_factor = self.config.mid_block_scale_factor;
        config.transformer.only_cross_attention = false;
        MidBlock::new(scope / "mid_block", block_type, &config).map(Some)
    }
}
