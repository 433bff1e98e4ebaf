//! The blocks on the way up.

use super::{BlockConfig, Conditioning, current_name};
use crate::error::{Error, Result};
use crate::models::resnet::ResnetBlock2D;
use crate::models::transformers::Transformer2DModel;
use crate::models::upsampling::Upsample2D;
use crate::nn::{Module, Node, Scope};
use tch::Tensor;

/// The channels that come into a block on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpChannels {
    /// Those of the block before it.
    pub prev_output_channel: i64,
    /// Those of the skip connection that its last residual block takes.
    pub in_channels: i64,
}

/// Residual blocks over skip connections with a transformer behind each, then doubling.
#[derive(Debug)]
pub struct CrossAttnUpBlock2D {
    node: Node,
    attentions: Vec<Transformer2DModel>,
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

impl CrossAttnUpBlock2D {
    /// Reads `attentions`, `resnets` and, if `add_upsample`, `upsamplers.0`.
    ///
    /// # Errors
    /// If the weights cannot be had; [`Error::Config`] if the channels do not divide into the heads.
    pub fn new(scope: Scope<'_>, channels: UpChannels, add_upsample: bool, config: &BlockConfig) -> Result<Self> {
        let attentions = config.transformers(&scope, config.num_layers)?;
        let resnets = resnets(&scope, channels, config)?;
        let upsampler = upsampler(&scope, add_upsample, config)?;
        Ok(Self { node: scope.finish::<Self>(), attentions, resnets, upsampler })
    }

    /// `skips` are the skip connections in the order in which the way down left them: the last is taken first.
    /// `upsample_size` is the height and width to come out, in pixels; none doubles.
    ///
    /// # Shapes
    /// `[batch, prev_output_channel, height, width]` to `[batch, out_channels, height', width']`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        skips: &[Tensor],
        cond: &Conditioning<'_>,
        upsample_size: Option<[i64; 2]>,
    ) -> Result<Tensor> {
        let mut inputs = vec![hidden_states, cond.temb, cond.encoder_hidden_states];
        inputs.extend(skips);
        let outputs = self.node.call_many(&inputs, |inputs| {
            let [hidden_states, temb, text, skips @ ..] = inputs else {
                return Err(Error::Arity { expected: 3 + skips.len(), found: inputs.len() });
            };
            let cond = cond.with(temb, text);
            let mut hidden_states = hidden_states.shallow_clone();
            for ((resnet, attention), skip) in self.resnets.iter().zip(&self.attentions).zip(skips.iter().rev()) {
                hidden_states = resnet.forward(&Tensor::f_cat(&[&hidden_states, *skip], 1)?, Some(temb))?;
                hidden_states = cond.attend(attention, &hidden_states)?;
            }
            upsample(self.upsampler.as_ref(), hidden_states, upsample_size)
        })?;
        only(outputs)
    }
}

impl Module for CrossAttnUpBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// Residual blocks over skip connections, then doubling.
#[derive(Debug)]
pub struct UpBlock2D {
    node: Node,
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

impl UpBlock2D {
    /// Reads `resnets` and, if `add_upsample`, `upsamplers.0`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, channels: UpChannels, add_upsample: bool, config: &BlockConfig) -> Result<Self> {
        let resnets = resnets(&scope, channels, config)?;
        let upsampler = upsampler(&scope, add_upsample, config)?;
        Ok(Self { node: scope.finish::<Self>(), resnets, upsampler })
    }

    /// `skips` are the skip connections in the order in which the way down left them: the last is taken first.
    /// `upsample_size` is the height and width to come out, in pixels; none doubles.
    ///
    /// # Shapes
    /// `[batch, prev_output_channel, height, width]` to `[batch, out_channels, height', width']`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        skips: &[Tensor],
        cond: &Conditioning<'_>,
        upsample_size: Option<[i64; 2]>,
    ) -> Result<Tensor> {
        let mut inputs = vec![hidden_states, cond.temb];
        inputs.extend(skips);
        let outputs = self.node.call_many(&inputs, |inputs| {
            let [hidden_states, temb, skips @ ..] = inputs else {
                return Err(Error::Arity { expected: 2 + skips.len(), found: inputs.len() });
            };
            let mut hidden_states = hidden_states.shallow_clone();
            for (resnet, skip) in self.resnets.iter().zip(skips.iter().rev()) {
                hidden_states = resnet.forward(&Tensor::f_cat(&[&hidden_states, *skip], 1)?, Some(temb))?;
            }
            upsample(self.upsampler.as_ref(), hidden_states, upsample_size)
        })?;
        only(outputs)
    }
}

impl Module for UpBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

fn resnets(scope: &Scope<'_>, channels: UpChannels, config: &BlockConfig) -> Result<Vec<ResnetBlock2D>> {
    let resnets = scope / "resnets";
    let make = |index| {
        let below = if index == 0 { channels.prev_output_channel } else { config.out_channels };
        let skip = if index + 1 == config.num_layers { channels.in_channels } else { config.out_channels };
        config.resnet(&resnets / index, below + skip)
    };
    (0..config.num_layers).map(make).collect()
}

fn upsampler(scope: &Scope<'_>, add_upsample: bool, config: &BlockConfig) -> Result<Option<Upsample2D>> {
    let channels = config.out_channels;
    add_upsample.then(|| Upsample2D::with_conv(scope / "upsamplers" / 0, channels, channels)).transpose()
}

fn upsample(
    upsampler: Option<&Upsample2D>,
    hidden_states: Tensor,
    upsample_size: Option<[i64; 2]>,
) -> Result<Vec<Tensor>> {
    Ok(vec![match upsampler {
        Some(upsampler) => upsampler.forward(&hidden_states, upsample_size)?,
        None => hidden_states,
    }])
}

/// The one tensor that a block on the way up gives.
fn only(outputs: Vec<Tensor>) -> Result<Tensor> {
    let [output] = outputs.try_into().map_err(|outputs: Vec<_>| Error::Arity { expected: 1, found: outputs.len() })?;
    Ok(output)
}

/// A block on the way up, as `up_block_types` names it.
#[derive(Debug)]
pub(crate) enum UpBlock {
    CrossAttn(CrossAttnUpBlock2D),
    Plain(UpBlock2D),
}

impl UpBlock {
    pub(crate) fn new(
        scope: Scope<'_>,
        block_type: &str,
        channels: UpChannels,
        add_upsample: bool,
        config: &BlockConfig,
    ) -> Result<Self> {
        match current_name(block_type) {
            "CrossAttnUpBlock2D" => CrossAttnUpBlock2D::new(scope, channels, add_upsample, config).map(Self::CrossAttn),
            "UpBlock2D" => UpBlock2D::new(scope, channels, add_upsample, config).map(Self::Plain),
            _ => Err(Error::Unsupported(format!(
                "`up_block_types`: {block_type} is not supported; CrossAttnUpBlock2D and UpBlock2D are"
            ))),
        }
    }

    pub(crate) fn forward(
        &self,
        hidden_states: &Tensor,
        skips: &[Tensor],
        cond: &Conditioning<'_>,
        upsample_size: Option<[i64; 2]>,
    ) -> Result<Tensor> {
        match self {
            Self::CrossAttn(block) => block.forward(hidden_states, skips, cond, upsample_size),
            Self::Plain(block) => block.forward(hidden_states, skips, cond, upsample_size),
        }
    }

    /// How many skip connections the block takes.
    pub(crate) fn skips(&self) -> usize {
        match self {
            Self::CrossAttn(block) => block.resnets.len(),
            Self::Plain(block) => block.resnets.len(),
        }
    }
}
