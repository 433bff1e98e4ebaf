//! The block in the middle.

use super::{BlockConfig, Conditioning};
use crate::error::{Error, Result};
use crate::models::resnet::ResnetBlock2D;
use crate::models::transformers::Transformer2DModel;
use crate::nn::{Module, Node, Scope};
use tch::Tensor;

/// A residual block, then pairs of a transformer and a residual block.
#[derive(Debug)]
pub struct UNetMidBlock2DCrossAttn {
    node: Node,
    attentions: Vec<Transformer2DModel>,
    resnets: Vec<ResnetBlock2D>,
}

impl UNetMidBlock2DCrossAttn {
    /// Reads `attentions` and `resnets`; the channels stay the same.
    ///
    /// # Errors
    /// If the weights cannot be had; [`Error::Config`] if the channels do not divide into the heads.
    pub fn new(scope: Scope<'_>, config: &BlockConfig) -> Result<Self> {
        let attentions = config.transformers(&scope, config.num_layers)?;
        let resnets = &scope / "resnets";
        let resnets = (0..=config.num_layers)
            .map(|index| config.resnet(&resnets / index, config.out_channels))
            .collect::<Result<_>>()?;
        Ok(Self { node: scope.finish::<Self>(), attentions, resnets })
    }

    /// # Shapes
    /// `[batch, channels, height, width]`, and the same comes out.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Tensor> {
        let inputs = [hidden_states, cond.temb, cond.encoder_hidden_states];
        let [hidden_states] = self.node.call(inputs, |[hidden_states, temb, text]| {
            let cond = cond.with(temb, text);
            let Some((first, resnets)) = self.resnets.split_first() else {
                return Ok([hidden_states.shallow_clone()]);
            };
            let mut hidden_states = first.forward(hidden_states, Some(temb))?;
            for (attention, resnet) in self.attentions.iter().zip(resnets) {
                hidden_states = resnet.forward(&cond.attend(attention, &hidden_states)?, Some(temb))?;
            }
            Ok([hidden_states])
        })?;
        Ok(hidden_states)
    }
}

impl Module for UNetMidBlock2DCrossAttn {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// One residual block, which is what `mid_block_type="UNetMidBlock2D"` makes of the block of that name.
#[derive(Debug)]
pub struct UNetMidBlock2D {
    node: Node,
    resnet: ResnetBlock2D,
}

impl UNetMidBlock2D {
    /// Reads `resnets.0`; the channels stay the same.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: &BlockConfig) -> Result<Self> {
        let resnet = config.resnet(&scope / "resnets" / 0, config.out_channels)?;
        Ok(Self { node: scope.finish::<Self>(), resnet })
    }

    /// # Shapes
    /// `[batch, channels, height, width]`, and the same comes out.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states, cond.temb], |[hidden_states, temb]| {
            Ok([self.resnet.forward(hidden_states, Some(temb))?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for UNetMidBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The block in the middle, as `mid_block_type` names it.
#[derive(Debug)]
pub(crate) enum MidBlock {
    CrossAttn(UNetMidBlock2DCrossAttn),
    Plain(Box<UNetMidBlock2D>),
}

impl MidBlock {
    pub(crate) fn new(scope: Scope<'_>, block_type: &str, config: &BlockConfig) -> Result<Self> {
        match block_type {
            "UNetMidBlock2DCrossAttn" => UNetMidBlock2DCrossAttn::new(scope, config).map(Self::CrossAttn),
            "UNetMidBlock2D" => UNetMidBlock2D::new(scope, config).map(|block| Self::Plain(Box::new(block))),
            _ => Err(Error::Unsupported(format!(
                "`mid_block_type`: {block_type} is not supported; UNetMidBlock2DCrossAttn and UNetMidBlock2D are"
            ))),
        }
    }

    pub(crate) fn forward(&self, hidden_states: &Tensor, cond: &Conditioning<'_>) -> Result<Tensor> {
        match self {
            Self::CrossAttn(block) => block.forward(hidden_states, cond),
            Self::Plain(block) => block.forward(hidden_states, cond),
        }
    }
}
