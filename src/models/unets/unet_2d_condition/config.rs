//! `config.json` of a `UNet2DConditionModel`.

use crate::configuration_utils::{ConfigMap, OneOrMany};
use crate::error::{Error, Result};
use crate::models::resnet::TimeEmbeddingNorm;
use crate::nn::Activation;
use serde::{Deserialize, Deserializer, Serialize};

/// The configuration of a [`UNet2DConditionModel`](super::UNet2DConditionModel), with diffusers' keys and defaults.
///
/// Some keys change nothing: `dropout` at inference, and those that concern only blocks that are not supported.
///
/// # Examples
/// ```
/// use tch_diffusers::{configuration_utils::from_map, models::unets::UNet2DConditionConfig};
/// let config = serde_json::json!({ "cross_attention_dim": 768, "sample_size": 64, "_class_name": "UNet2DConditionModel" });
/// let config: UNet2DConditionConfig = from_map(config.as_object().unwrap())?;
/// assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct UNet2DConditionConfig {
    /// Height and width of the latents that the model was trained on, in latent pixels.
    pub sample_size: Option<OneOrMany<i64>>,
    /// Channels of the sample; 4. Inpainting models have 9.
    pub in_channels: i64,
    /// Channels of the prediction; 4.
    pub out_channels: i64,
    /// Whether the sample is mapped from `[0, 1]` to `[-1, 1]` first.
    #[serde(deserialize_with = "null_is_false")]
    pub center_input_sample: bool,
    /// Whether the cosines come first in the time embedding; yes.
    #[serde(deserialize_with = "null_is_false")]
    pub flip_sin_to_cos: bool,
    /// What is subtracted from the number of frequencies where they are spaced; 0.
    pub freq_shift: f64,
    /// The blocks on the way down.
    pub down_block_types: Vec<String>,
    /// The block in the middle; none skips it.
    pub mid_block_type: Option<String>,
    /// The blocks on the way up.
    pub up_block_types: Vec<String>,
    /// Whether the transformers look at the text only; no.
    pub only_cross_attention: OneOrMany<bool>,
    /// Channels of each block, on the way down.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks in each block on the way down; 2. There is one more on the way up.
    pub layers_per_block: OneOrMany<i64>,
    /// Zeros around the picture where it is halved, in pixels; 1. A 0 puts them right and below only.
    pub downsample_padding: i64,
    /// What the residual blocks in the middle divide their output by; 1.
    pub mid_block_scale_factor: f64,
    /// Changes nothing at inference; 0.
    pub dropout: f64,
    /// The activation of the residual blocks and the time embedding; SiLU.
    pub act_fn: Activation,
    /// Groups of the norms; 32.
    pub norm_num_groups: Option<i64>,
    /// What the norms of the residual blocks add to the variance; 1e-5.
    pub norm_eps: f64,
    /// Channels of the text's tokens; 1280.
    pub cross_attention_dim: OneOrMany<i64>,
    /// Transformer blocks behind each residual block; 1. In lists of lists, one number for each residual block.
    pub transformer_layers_per_block: OneOrMany<OneOrMany<i64>>,
    /// The same on the way up, from the middle outwards; if none, those of the way down in reverse.
    pub reverse_transformer_layers_per_block: Option<Vec<OneOrMany<i64>>>,
    /// Not supported, nor is `encoder_hid_dim_type`.
    pub encoder_hid_dim: Option<i64>,
    /// Not supported.
    pub encoder_hid_dim_type: Option<String>,
    /// The number of heads of each block, in spite of its name; 8.
    pub attention_head_dim: OneOrMany<i64>,
    /// Must be none: diffusers refuses it, for the sake of `attention_head_dim`'s name.
    pub num_attention_heads: Option<OneOrMany<i64>>,
    /// Not supported.
    #[serde(deserialize_with = "null_is_false")]
    pub dual_cross_attention: bool,
    /// Whether the transformers project their tokens by linear layers instead of convolutions; no.
    #[serde(deserialize_with = "null_is_false")]
    pub use_linear_projection: bool,
    /// What the class labels are: `timestep`, `identity` or `projection`; none, or row numbers if there are
    /// `num_class_embeds`.
    pub class_embed_type: Option<String>,
    /// `text_time` for SDXL's pooled text and sizes; none.
    pub addition_embed_type: Option<String>,
    /// Sinusoids of each of SDXL's sizes.
    pub addition_time_embed_dim: Option<i64>,
    /// Number of classes.
    pub num_class_embeds: Option<i64>,
    /// Whether attention in slices computes its scores in float32; other attention does not look at it.
    pub upcast_attention: Option<bool>,
    /// How the time embedding enters the residual blocks.
    pub resnet_time_scale_shift: TimeEmbeddingNorm,
    /// Changes nothing: concerns `ResnetDownsampleBlock2D` and its kin.
    #[serde(deserialize_with = "null_is_false")]
    pub resnet_skip_time_act: bool,
    /// Changes nothing: concerns `ResnetDownsampleBlock2D` and its kin; 1.
    pub resnet_out_scale_factor: f64,
    /// `positional`; `fourier` is not supported.
    pub time_embedding_type: String,
    /// Channels of the time embedding; four times those of the first block.
    pub time_embedding_dim: Option<i64>,
    /// An activation of the time embedding, once for all blocks; none.
    pub time_embedding_act_fn: Option<Activation>,
    /// An activation at the end of the time embedding's layers; none.
    pub timestep_post_act: Option<Activation>,
    /// Channels of `timestep_cond`, such as LCM's guidance; none.
    pub time_cond_proj_dim: Option<i64>,
    /// Side of the first convolution's kernel, in pixels; 3.
    pub conv_in_kernel: i64,
    /// Side of the last convolution's kernel, in pixels; 3.
    pub conv_out_kernel: i64,
    /// Channels of the class labels of type `projection`, or of SDXL's pooled text and sinusoids together.
    pub projection_class_embeddings_input_dim: Option<i64>,
    /// `default`; GLIGEN's `gated` is not supported.
    pub attention_type: String,
    /// Whether the class embedding is put beside the time embedding instead of added to it; no.
    #[serde(deserialize_with = "null_is_false")]
    pub class_embeddings_concat: bool,
    /// Changes nothing: concerns `UNetMidBlock2DSimpleCrossAttn`.
    pub mid_block_only_cross_attention: Option<bool>,
    /// Changes nothing: concerns `SimpleCrossAttnDownBlock2D` and its kin.
    pub cross_attention_norm: Option<String>,
    /// Changes nothing: concerns `addition_embed_type="text"`; 64.
    pub addition_embed_type_num_heads: i64,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for UNet2DConditionConfig {
    fn default() -> Self {
        let names = |names: [&str; 4]| names.map(String::from).to_vec();
        let (cross_down, cross_up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([cross_down, cross_down, cross_down, "DownBlock2D"]),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".into()),
            up_block_types: names(["UpBlock2D", cross_up, cross_up, cross_up]),
            only_cross_attention: OneOrMany::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: OneOrMany::One(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            act_fn: Activation::Silu,
            norm_num_groups: Some(32),
            norm_eps: 1e-5,
            cross_attention_dim: OneOrMany::One(1280),
            transformer_layers_per_block: OneOrMany::One(OneOrMany::One(1)),
            reverse_transformer_layers_per_block: None,
            encoder_hid_dim: None,
            encoder_hid_dim_type: None,
            attention_head_dim: OneOrMany::One(8),
            num_attention_heads: None,
            dual_cross_attention: false,
            use_linear_projection: false,
            class_embed_type: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            num_class_embeds: None,
            upcast_attention: Some(false),
            resnet_time_scale_shift: TimeEmbeddingNorm::Default,
            resnet_skip_time_act: false,
            resnet_out_scale_factor: 1.0,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            time_embedding_act_fn: None,
            timestep_post_act: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            projection_class_embeddings_input_dim: None,
            attention_type: "default".into(),
            class_embeddings_concat: false,
            mid_block_only_cross_attention: None,
            cross_attention_norm: None,
            addition_embed_type_num_heads: 64,
            other: ConfigMap::new(),
        }
    }
}

impl UNet2DConditionConfig {
    /// Refuses what contradicts itself, and what diffusers has and this library does not.
    ///
    /// The names of the blocks and the types of the embeddings are looked at where those are made.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Unsupported`], naming the key.
    pub fn check(&self) -> Result<()> {
        let blocks = self.block_out_channels.len();
        if blocks == 0 {
            return Err(Error::Config("`block_out_channels` is empty".into()));
        }
        for (key, found) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if found != blocks {
                return Err(Error::Config(format!("`{key}` has {found} values for {blocks} blocks")));
            }
        }
        if self.num_attention_heads.is_some() {
            return Err(Error::Config(
                "`num_attention_heads` must be null: `attention_head_dim` holds the number of heads".into(),
            ));
        }
        let unsupported = [
            (self.encoder_hid_dim_type.is_some() || self.encoder_hid_dim.is_some(), "encoder_hid_dim_type"),
            (self.dual_cross_attention, "dual_cross_attention"),
            (self.time_embedding_type != "positional", "time_embedding_type"),
            (self.attention_type != "default", "attention_type"),
        ];
        match unsupported.iter().find(|(is_set, _)| *is_set) {
            Some((_, key)) => Err(Error::Unsupported(format!("`{key}` = {} is not supported", self.shown(key)))),
            None => Ok(()),
        }
    }

    /// The value of a key that is not supported, for the message.
    fn shown(&self, key: &str) -> String {
        match key {
            "encoder_hid_dim_type" => self.encoder_hid_dim_type.clone().unwrap_or_else(|| "text_proj".into()),
            "time_embedding_type" => self.time_embedding_type.clone(),
            "attention_type" => self.attention_type.clone(),
            _ => "true".into(),
        }
    }

    /// Channels of the text's tokens, in the first block.
    pub(crate) fn text_channels(&self) -> i64 {
        match &self.cross_attention_dim {
            OneOrMany::One(channels) => *channels,
            OneOrMany::Many(channels) => channels.first().copied().unwrap_or_default(),
        }
    }

    /// Channels of the time embedding that the blocks take.
    pub(super) fn temb_channels(&self) -> i64 {
        self.time_embed_dim() * if self.class_embeddings_concat { 2 } else { 1 }
    }

    /// Channels of the time embedding itself.
    pub(super) fn time_embed_dim(&self) -> i64 {
        self.time_embedding_dim.unwrap_or_else(|| self.block_out_channels.first().map_or(0, |channels| channels * 4))
    }

    /// Transformer blocks behind each residual block: for the blocks on the way down, and for those on the way up.
    pub(super) fn transformer_layers(&self) -> Result<[Vec<OneOrMany<i64>>; 2]> {
        let blocks = self.block_out_channels.len();
        let down = self.transformer_layers_per_block.spread("transformer_layers_per_block", blocks)?;
        let up = match &self.reverse_transformer_layers_per_block {
            Some(up) => OneOrMany::Many(up.clone()).spread("reverse_transformer_layers_per_block", blocks)?,
            None if down.iter().any(|layers| matches!(layers, OneOrMany::Many(_))) => {
                return Err(Error::Config(
                    "a list of lists in `transformer_layers_per_block` needs `reverse_transformer_layers_per_block`"
                        .into(),
                ));
            }
            None => down.iter().rev().cloned().collect(),
        };
        Ok([down, up])
    }
}

/// diffusers takes a `null` for a flag as false, and SDXL's configurations have some.
fn null_is_false<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(false))
}
