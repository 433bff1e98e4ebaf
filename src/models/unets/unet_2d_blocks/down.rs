//! The blocks on the way down.

use super::{BlockConfig, Conditioning, current_name};
use crate::error::{Error, Result};
use crate::models::downsampling::Downsample2D;
use crate::models::resnet::ResnetBlock2D;
use crate::models::transformers::Transformer2DModel;
use crate::nn::{Module, Node, Scope};
use tch::Tensor;

/// Residual blocks with a transformer behind each, then halving.
#[derive(Debug)]
pub struct CrossAttnDownBlock2D {
    node: Node,
    attentions: Vec<Transformer2DModel>,
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Downsample2D>,
}

impl CrossAttnDownBlock2D {
    /// Reads `attentions`, `resnets` and, if the picture is halved, `downsamplers.0` with `downsample_padding`.
    ///
    /// # Errors
    /// If the weights cannot be had; [`Error::Config`] if the channels do not divide into the heads.
    pub fn new(
        scope: Scope<'_>,
        in_channels: i64,
        downsample_padding: Option<i64>,
        config: &BlockConfig,
    ) -> Result<Self> {
        let attentions = config.transformers(&scope, config.num_layers)?;
        let resnets = resnets(&scope, in_channels, config)?;
        let downsampler = downsampler(&scope, downsample_padding, config)?;
        Ok(Self { node: scope.finish::<Self>(), attentions, resnets, downsampler })
    }

    /// What each residual block with its transformer gives, and the halved picture: the last is what goes on.
    ///
    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`, and half that size at the end.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Vec<Tensor>> {
        self.node.call_many(&[hidden_states, cond.temb, cond.encoder_hidden_states], |inputs| {
            let &[hidden_states, temb, text] = inputs else {
                return Err(Error::Arity { expected: 3, found: inputs.len() });
            };
            let cond = cond.with(temb, text);
            let mut outputs = Vec::with_capacity(self.resnets.len() + 1);
            for (resnet, attention) in self.resnets.iter().zip(&self.attentions) {
                let hidden_states = resnet.forward(outputs.last().unwrap_or(hidden_states), Some(temb))?;
                outputs.push(cond.attend(attention, &hidden_states)?);
            }
            downsample(self.downsampler.as_ref(), hidden_states, outputs)
        })
    }
}

impl Module for CrossAttnDownBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Residual blocks, then halving.
#[derive(Debug)]
pub struct DownBlock2D {
    node: Node,
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock2D {
    /// Reads `resnets` and, if the picture is halved, `downsamplers.0` with `downsample_padding`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(
        scope: Scope<'_>,
        in_channels: i64,
        downsample_padding: Option<i64>,
        config: &BlockConfig,
    ) -> Result<Self> {
        let resnets = resnets(&scope, in_channels, config)?;
        let downsampler = downsampler(&scope, downsample_padding, config)?;
        Ok(Self { node: scope.finish::<Self>(), resnets, downsampler })
    }

    /// What each residual block gives, and the halved picture: the last is what goes on.
    ///
    /// # Shapes
    /// `[batch, in_channels, height, width]` to `[batch, out_channels, height, width]`, and half that size at the end.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Vec<Tensor>> {
        self.node.call_many(&[hidden_states, cond.temb], |inputs| {
            let &[hidden_states, temb] = inputs else {
                return Err(Error::Arity { expected: 2, found: inputs.len() });
            };
            let mut outputs = Vec::with_capacity(self.resnets.len() + 1);
            for resnet in &self.resnets {
                outputs.push(resnet.forward(outputs.last().unwrap_or(hidden_states), Some(temb))?);
            }
            downsample(self.downsampler.as_ref(), hidden_states, outputs)
        })
    }
}

impl Module for DownBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

fn resnets(scope: &Scope<'_>, in_channels: i64, config: &BlockConfig) -> Result<Vec<ResnetBlock2D>> {
    let resnets = scope / "resnets";
    let make = |index| {
        let in_channels = if index == 0 { in_channels } else { config.out_channels };
        config.resnet(&resnets / index, in_channels)
    };
    (0..config.num_layers).map(make).collect()
}

fn downsampler(scope: &Scope<'_>, padding: Option<i64>, config: &BlockConfig) -> Result<Option<Downsample2D>> {
    let channels = config.out_channels;
    let make = |padding| Downsample2D::with_conv(scope / "downsamplers" / 0, channels, channels, padding);
    padding.map(make).transpose()
}

/// Adds the halved picture to `outputs`, which start from `hidden_states`.
fn downsample(
    downsampler: Option<&Downsample2D>,
    hidden_states: &Tensor,
    mut outputs: Vec<Tensor>,
) -> Result<Vec<Tensor>> {
    if let Some(downsampler) = downsampler {
        outputs.push(downsampler.forward(outputs.last().unwrap_or(hidden_states))?);
    }
    Ok(outputs)
}

/// A block on the way down, as `down_block_types` names it.
#[derive(Debug)]
pub(crate) enum DownBlock {
    CrossAttn(CrossAttnDownBlock2D),
    Plain(DownBlock2D),
}

impl DownBlock {
    pub(crate) fn new(
        scope: Scope<'_>,
        block_type: &str,
        in_channels: i64,
        downsample_padding: Option<i64>,
        config: &BlockConfig,
    ) -> Result<Self> {
        match current_name(block_type) {
            "CrossAttnDownBlock2D" => {
                CrossAttnDownBlock2D::new(scope, in_channels, downsample_padding, config).map(Self::CrossAttn)
            }
            "DownBlock2D" => DownBlock2D::new(scope, in_channels, downsample_padding, config).map(Self::Plain),
            _ => Err(Error::Unsupported(format!(
                "`down_block_types`: {block_type} is not supported; CrossAttnDownBlock2D and DownBlock2D are"
            ))),
        }
    }

    pub(crate) fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Vec<Tensor>> {
        match self {
            Self::CrossAttn(block) => block.forward(hidden_states, cond),
            Self::Plain(block) => block.forward(hidden_states, cond),
        }
    }
}
