//! The transformer of FLUX.1.
//!
//! Mirrors `FluxTransformer2DModel` of `diffusers/models/transformers/transformer_flux.py` (0.42.1), whose authors are Black
//! Forest Labs (<https://bfl.ai/announcing-black-forest-labs>). IP-Adapters and ControlNets are left out.

mod attention;
mod blocks;
mod rotary;

use super::FluxTransformer;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::loaders::lora::PeftAdapterMixin;
use crate::models::normalization::AdaLayerNormContinuous;
use crate::models::text_time_embeddings::CombinedTimestepTextProjEmbeddings;
use crate::models::{ModelMixin, To};
use crate::nn::{Linear, Module, Node, Scope};
use crate::torch::NumberExt;
use blocks::{FluxSingleTransformerBlock, FluxTransformerBlock};
use rotary::Rotary;
use serde::{Deserialize, Serialize};
use std::any::Any;
use tch::{Device, Kind, Tensor};

/// What a [`FluxTransformer2DModel`] is made with: the keys of its `config.json`. The defaults are diffusers'.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct FluxTransformer2DConfig {
    /// Side of the square of output pixels that a token stands for; 1.
    pub patch_size: i64,
    /// Channels of a picture's token; 64.
    pub in_channels: i64,
    /// Channels that come out; as many as come in unless given.
    pub out_channels: Option<i64>,
    /// Blocks with a stream each for text and picture; 19.
    pub num_layers: usize,
    /// Blocks with both in one stream; 38.
    pub num_single_layers: usize,
    /// Channels of a head; 128.
    pub attention_head_dim: i64,
    /// Heads; 24.
    pub num_attention_heads: i64,
    /// Channels of the text's tokens; 4096.
    pub joint_attention_dim: i64,
    /// Channels of the pooled text; 768.
    pub pooled_projection_dim: i64,
    /// Whether the guidance scale is an input: FLUX.1-dev's distillation; no.
    pub guidance_embeds: bool,
    /// Channels of a head that turn with a token's index, row and column; 16, 56, 56.
    pub axes_dims_rope: Vec<i64>,
    /// Keys that mean nothing here: kept, and written back.
    #[serde(flatten)]
    pub other: ConfigMap,
}

impl Default for FluxTransformer2DConfig {
    fn default() -> Self {
        Self {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
            other: ConfigMap::new(),
        }
    }
}

impl FluxTransformer2DConfig {
    /// Channels of a token inside.
    fn inner_dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    fn check(&self) -> Result<()> {
        let turned: i64 = self.axes_dims_rope.iter().sum();
        if self.num_attention_heads < 1
            || turned != self.attention_head_dim
            || self.axes_dims_rope.iter().any(|dim| dim % 2 != 0)
        {
            return Err(Error::Config(format!(
                "`axes_dims_rope` {:?} are even numbers that add up to `attention_head_dim` {}, of at least one head",
                self.axes_dims_rope, self.attention_head_dim
            )));
        }
        Ok(())
    }
}

/// What a forward takes.
#[derive(Clone, Copy, Debug)]
pub struct FluxInputs<'a> {
    /// The noisy picture's tokens, `[batch, pixels, in_channels]`.
    pub hidden_states: &'a Tensor,
    /// The text's tokens, `[batch, tokens, joint_attention_dim]`.
    pub encoder_hidden_states: &'a Tensor,
    /// The pooled text, `[batch, pooled_projection_dim]`.
    pub pooled_projections: &'a Tensor,
    /// How noisy the picture is, from 0 to 1: `[batch]`.
    pub timestep: &'a Tensor,
    /// The places of the picture's tokens, `[pixels, axes]`.
    pub img_ids: &'a Tensor,
    /// The places of the text's tokens, `[tokens, axes]`.
    pub txt_ids: &'a Tensor,
    /// The guidance scale, `[batch]`, for a model that takes it.
    pub guidance: Option<&'a Tensor>,
}

/// Predicts the velocity of a picture's tokens.
#[derive(Debug)]
pub struct FluxTransformer2DModel {
    node: Node,
    config: FluxTransformer2DConfig,
    time_text_embed: CombinedTimestepTextProjEmbeddings,
    context_embedder: Linear,
    x_embedder: Linear,
    transformer_blocks: Vec<FluxTransformerBlock>,
    single_transformer_blocks: Vec<FluxSingleTransformerBlock>,
    norm_out: AdaLayerNormContinuous,
    proj_out: Linear,
}

impl FluxTransformer2DModel {
    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] for rotations that do not fit the heads; whatever the weights fail with.
    pub fn new(config: FluxTransformer2DConfig, scope: Scope<'_>) -> Result<Self> {
        config.check()?;
        let (dim, heads) = (config.inner_dim(), config.num_attention_heads);
        let time_text_embed = CombinedTimestepTextProjEmbeddings::new(
            &scope / "time_text_embed",
            dim,
            config.pooled_projection_dim,
            config.guidance_embeds,
        )?;
        let context_embedder = Linear::new(&scope / "context_embedder", config.joint_attention_dim, dim, true)?;
        let x_embedder = Linear::new(&scope / "x_embedder", config.in_channels, dim, true)?;
        let blocks = &scope / "transformer_blocks";
        let transformer_blocks = (0..config.num_layers)
            .map(|i| FluxTransformerBlock::new(&blocks / i, dim, heads))
            .collect::<Result<_>>()?;
        let blocks = &scope / "single_transformer_blocks";
        let single_transformer_blocks = (0..config.num_single_layers)
            .map(|i| FluxSingleTransformerBlock::new(&blocks / i, dim, heads))
            .collect::<Result<_>>()?;
        let norm_out = AdaLayerNormContinuous::new(&scope / "norm_out", dim, dim)?;
        let outputs = config.patch_size * config.patch_size * config.out_channels.unwrap_or(config.in_channels);
        let proj_out = Linear::new(&scope / "proj_out", dim, outputs, true)?;
        Ok(Self {
            node: scope.finish::<Self>(),
            config,
            time_text_embed,
            context_embedder,
            x_embedder,
            transformer_blocks,
            single_transformer_blocks,
            norm_out,
            proj_out,
        })
    }

    /// The velocity, `[batch, pixels, patch_size * patch_size * out_channels]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for guidance where the model takes none, or none where it does; [`Error::Shape`] or
    /// [`Error::Torch`] if the shapes do not fit.
    pub fn forward(&self, inputs: &FluxInputs<'_>) -> Result<Tensor> {
        let given = [inputs.hidden_states, inputs.encoder_hidden_states, inputs.pooled_projections, inputs.timestep];
        let [velocity] = self.node.call(given, |[hidden_states, encoder_hidden_states, pooled, timestep]| {
            Ok([self.predict(&FluxInputs {
                hidden_states,
                encoder_hidden_states,
                pooled_projections: pooled,
                timestep,
                ..*inputs
            })?])
        })?;
        Ok(velocity)
    }

    /// The forward, without the hooks around the model.
    pub(super) fn predict(&self, inputs: &FluxInputs<'_>) -> Result<Tensor> {
        let mut picture = self.x_embedder.forward(inputs.hidden_states)?;
        let kind = picture.f_kind()?;
        let thousandths = |number: &Tensor| number.f_to_kind(kind)?.times(1000.0);
        let guidance = inputs.guidance.map(thousandths).transpose()?;
        let time = thousandths(inputs.timestep)?;
        let temb = self.time_text_embed.forward(&time, guidance.as_ref(), inputs.pooled_projections)?;
        let mut words = self.context_embedder.forward(inputs.encoder_hidden_states)?;
        let places = Tensor::f_cat(&[inputs.txt_ids, inputs.img_ids], 0)?;
        let rotary = Rotary::new(&places, &self.config.axes_dims_rope)?;
        for block in &self.transformer_blocks {
            [words, picture] = block.forward([&words, &picture], &temb, &rotary)?;
        }
        for block in &self.single_transformer_blocks {
            [words, picture] = block.forward([&words, &picture], &temb, &rotary)?;
        }
        self.proj_out.forward(&self.norm_out.forward(&picture, &temb)?)
    }
}

impl Module for FluxTransformer2DModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl PeftAdapterMixin for FluxTransformer2DModel {}

impl FluxTransformer for FluxTransformer2DModel {
    fn config(&self) -> &FluxTransformer2DConfig {
        &self.config
    }

    fn forward(&self, inputs: &FluxInputs<'_>) -> Result<Tensor> {
        Self::forward(self, inputs)
    }

    fn dtype(&self) -> Kind {
        self.node.dtype()
    }

    fn device(&self) -> Device {
        self.node.execution_device()
    }

    fn move_to(&self, target: To) -> Result<()> {
        ModelMixin::to(self, target)
    }

    fn tree(&self) -> Option<&Node> {
        Some(&self.node)
    }

    fn model(&self) -> Option<&FluxTransformer2DModel> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ModelMixin for FluxTransformer2DModel {
    type Config = FluxTransformer2DConfig;

    const CLASS_NAME: &'static str = "FluxTransformer2DModel";
    const SKIP_LAYERWISE_CASTING_PATTERNS: &'static [&'static str] = &["pos_embed", "norm"];
    const REPEATED_BLOCKS: &'static [&'static str] = &["FluxTransformerBlock", "FluxSingleTransformerBlock"];

    fn from_scope(config: Self::Config, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &Self::Config {
        &self.config
    }
}
