//! The UNet of Stable Diffusion.
//!
//! Mirrors `UNet2DConditionModel` of `diffusers/models/unets/unet_2d_condition.py` (0.42.1): Rombach et al. 2022,
//! arXiv:2112.10752, and for SDXL Podell et al. 2023, arXiv:2307.01952.

mod build;
mod conditions;
mod config;
mod inputs;

pub use config::UNet2DConditionConfig;
pub use inputs::{AddedCond, UNetInputs};

use super::UNet;
use super::unet_2d_blocks::{Conditioning, DownBlock, MidBlock, UpBlock};
use crate::error::{Error, Result};
use crate::loaders::lora::PeftAdapterMixin;
use crate::models::attention_processor::{AttentionSlicing, set_attention_slice, set_attention_slices};
use crate::models::{ModelMixin, To};
use crate::nn::{Activation, Conv2d, GroupNorm, Module, Node, Scope};
use crate::torch::NumberExt;
use conditions::Conditions;
use std::any::Any;
use tch::{Device, Kind, Tensor};

/// Predicts noise from noisy latents, a timestep and text.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    node: Node,
    config: UNet2DConditionConfig,
    conv_in: Conv2d,
    conditions: Conditions,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_act: Activation,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// The configuration that the model was built from.
    #[must_use]
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// Predicts the noise, or what else the model was trained to predict.
    ///
    /// Hooks around the model may replace the sample, the timestep and the text.
    ///
    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`; any height and width will do.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Argument`] for inputs that do not fit the configuration; [`Error::Torch`], naming the
    /// module, for channels that do not.
    pub fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let outer = [inputs.sample, inputs.timestep, inputs.encoder_hidden_states];
        let [prediction] = self.node.call(outer, |[sample, timestep, encoder_hidden_states]| {
            Ok([self.predict(&UNetInputs { sample, timestep, encoder_hidden_states, ..*inputs })?])
        })?;
        Ok(prediction)
    }

    /// Computes attention in slices, which takes less memory and more time, or with `None` all heads at once again.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first attention with fewer heads than a slice is to have; nothing is changed then.
    pub fn set_attention_slice(&self, slicing: Option<AttentionSlicing>) -> Result<()> {
        set_attention_slice(&self.node, slicing)
    }

    /// Computes each attention in slices of its own size: see [`set_attention_slices`].
    ///
    /// # Errors
    /// As there.
    pub fn set_attention_slices(&self, sizes: &[i64]) -> Result<()> {
        set_attention_slices(&self.node, sizes)
    }

    /// Down, through the middle, and up again over the skip connections: figure 3 of the paper, from left to right.
    pub(in crate::models::unets) fn predict(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        let sizes = self.check(inputs)?;
        let kind = inputs.sample.kind();
        let attention_mask = inputs.attention_mask.map(|mask| bias(mask, kind)).transpose()?;
        let encoder_attention_mask = inputs.encoder_attention_mask.map(|mask| bias(mask, kind)).transpose()?;
        let temb = self.conditions.forward(inputs)?;
        let cond = Conditioning {
            temb: &temb,
            encoder_hidden_states: inputs.encoder_hidden_states,
            attention_mask: attention_mask.as_ref(),
            encoder_attention_mask: encoder_attention_mask.as_ref(),
            row_major: !inputs.sample.is_contiguous() && !self.keeps_channels_last(),
        };

        let mut hidden_states = self.conv_in.forward(&self.center(inputs.sample)?)?;
        let mut skips = vec![hidden_states.shallow_clone()];
        for block in &self.down_blocks {
            skips.extend(block.forward(&hidden_states, &cond)?);
            hidden_states = skips.last().unwrap_or(&hidden_states).shallow_clone();
        }
        add_residuals(&mut skips, inputs.down_block_additional_residuals)?;
        if let Some(block) = &self.mid_block {
            hidden_states = block.forward(&hidden_states, &cond)?;
        }
        if let Some(residual) = inputs.mid_block_additional_residual {
            hidden_states = hidden_states.f_add(residual)?;
        }
        for block in &self.up_blocks {
            let taken = skips.split_off(skips.len().saturating_sub(block.skips()));
            let upsample_size = sizes.then(|| skips.last().map(Tensor::size4).transpose()).transpose()?.flatten();
            let upsample_size = upsample_size.map(|(_, _, height, width)| [height, width]);
            hidden_states = block.forward(&hidden_states, &taken, &cond, upsample_size)?;
        }
        let hidden_states = self.conv_act.forward_into(self.conv_norm_out.forward(&hidden_states)?)?;
        self.conv_out.forward(&hidden_states)
    }

    /// Whether the picture does not halve evenly, so that its sizes on the way up follow those on the way down.
    fn check(&self, inputs: &UNetInputs<'_>) -> Result<bool> {
        let (batch, _, height, width) = inputs.sample.size4().map_err(|_| {
            Error::Shape(format!("`sample` is [batch, channels, height, width], got {:?}", inputs.sample.size()))
        })?;
        match inputs.encoder_hidden_states.size()[..] {
            [texts, _, _] if texts == batch => (),
            ref size => {
                return Err(Error::Shape(format!(
                    "`encoder_hidden_states` is [{batch}, keys, channels] for this sample, got {size:?}"
                )));
            }
        }
        // Differs from diffusers: there the middle's residual alone does nothing, and the others alone are taken for a
        // T2I-Adapter's, which is deprecated.
        if inputs.down_block_additional_residuals.is_some() != inputs.mid_block_additional_residual.is_some() {
            return Err(Error::Argument(
                "`down_block_additional_residuals` and `mid_block_additional_residual` go together".into(),
            ));
        }
        let factor = 1 << (self.up_blocks.len() - 1);
        Ok(height % factor != 0 || width % factor != 0)
    }

    /// Whether the weights have their channels last, so that every picture is to have.
    fn keeps_channels_last(&self) -> bool {
        self.conv_in.node().own_params().iter().any(|(_, param)| !param.get().is_contiguous())
    }

    fn center(&self, sample: &Tensor) -> Result<Tensor> {
        Ok(match self.config.center_input_sample {
            true => sample.times(2.0)?.minus(1.0)?,
            false => sample.shallow_clone(),
        })
    }
}

/// What is added to the scores of an attention, from a mask of ones and zeros: `[batch, 1, 1, keys]`.
fn bias(mask: &Tensor, kind: Kind) -> Result<Tensor> {
    let (batch, keys) =
        mask.size2().map_err(|_| Error::Shape(format!("attention masks are [batch, keys], got {:?}", mask.size())))?;
    let bias = mask.f_to_kind(kind)?.subtracted_from(1.0)?.times(-10000.0)?;
    Ok(bias.f_view([batch, 1, 1, keys])?)
}

/// Adds a ControlNet's residuals to the skip connections.
fn add_residuals(skips: &mut [Tensor], residuals: Option<&[Tensor]>) -> Result<()> {
    let Some(residuals) = residuals else { return Ok(()) };
    // Differs from diffusers: there, skip connections without a residual are dropped, and fail on the way up.
    if residuals.len() != skips.len() {
        return Err(Error::Argument(format!(
            "`down_block_additional_residuals` has {} tensors for {} skip connections",
            residuals.len(),
            skips.len()
        )));
    }
    for (skip, residual) in skips.iter_mut().zip(residuals) {
        *skip = skip.f_add(residual)?;
    }
    Ok(())
}

impl Module for UNet2DConditionModel {
    fn node(&self) -> &Node {
        &self.node
    }
}

impl PeftAdapterMixin for UNet2DConditionModel {}

impl ModelMixin for UNet2DConditionModel {
    type Config = UNet2DConditionConfig;

    const CLASS_NAME: &'static str = "UNet2DConditionModel";
    const SKIP_LAYERWISE_CASTING_PATTERNS: &'static [&'static str] = &["norm"];
    const REPEATED_BLOCKS: &'static [&'static str] = &["BasicTransformerBlock"];

    fn from_scope(config: Self::Config, scope: Scope<'_>) -> Result<Self> {
        Self::new(config, scope)
    }

    fn config(&self) -> &Self::Config {
        &self.config
    }
}

impl UNet for UNet2DConditionModel {
    fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
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

    fn share(&self) -> Result<Box<dyn UNet>> {
        Ok(Box::new(ModelMixin::share(self)?))
    }

    fn tree(&self) -> Option<&Node> {
        Some(&self.node)
    }

    fn model(&self) -> Option<&UNet2DConditionModel> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
