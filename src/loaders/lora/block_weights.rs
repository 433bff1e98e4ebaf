//! How much an adapter counts in the parts of a UNet.
//!
//! Mirrors `_maybe_expand_lora_scales` of `diffusers/loaders/unet_loader_utils.py`, and `set_weights_and_activate_adapters`
//! of `diffusers/utils/peft_utils.py`, at 0.42.1.

use crate::error::{Error, Result};
use crate::nn::Node;

/// How much an adapter counts in a UNet: 1 as it was trained, 0 not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum UNetWeight {
    /// The same in all layers.
    Everywhere(f64),
    /// By the blocks that have attention.
    ByBlock(BlockWeights),
}

/// How much an adapter counts in the attentions of each block of a UNet, and in the resnet, down- or upsampler of the same
/// number; 1 where nothing is said, and in all other layers.
///
/// # Examples
/// ```
/// use tch_diffusers::loaders::lora::{BlockWeights, LayerWeights};
/// let weights = BlockWeights::default().down(0.9).mid(0.7).up([(0, 0.5.into()), (1, LayerWeights::from([0.2, 0.8, 0.4]))]);
/// assert_eq!(weights.mid, Some(0.7));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockWeights {
    /// On the way down.
    pub down: Option<SideWeights>,
    /// In the middle.
    pub mid: Option<f64>,
    /// On the way up.
    pub up: Option<SideWeights>,
}

/// The weights of all blocks on one side of a UNet.
#[derive(Clone, Debug, PartialEq)]
pub enum SideWeights {
    /// The same in each block.
    EachBlock(LayerWeights),
    /// By the blocks' numbers: diffusers' `block_0`, `block_1` ...
    Blocks(Vec<(usize, LayerWeights)>),
}

/// The weights of the attentions in one block.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerWeights {
    /// The same in all.
    All(f64),
    /// One for each, or one for all.
    Each(Vec<f64>),
}

impl BlockWeights {
    /// Sets [`BlockWeights::down`].
    #[must_use]
    pub fn down(mut self, weights: impl Into<SideWeights>) -> Self {
        self.down = Some(weights.into());
        self
    }

    /// Sets [`BlockWeights::mid`].
    #[must_use]
    pub fn mid(mut self, weight: f64) -> Self {
        self.mid = Some(weight);
        self
    }

    /// Sets [`BlockWeights::up`].
    #[must_use]
    pub fn up(mut self, weights: impl Into<SideWeights>) -> Self {
        self.up = Some(weights.into());
        self
    }

    /// The weight of each attention by its path.
    fn expanded(&self, model: &Node) -> Result<Vec<(String, f64)>> {
        let mut expanded = vec![];
        if let Some(weight) = self.mid {
            let path = "mid_block.attentions.0";
            if model.get(path).is_none() {
                return Err(Error::Argument(format!("`mid`: the {} has no attention in its middle", model.class())));
            }
            expanded.push((path.into(), weight));
        }
        for (side, weights) in [("down", &self.down), ("up", &self.up)] {
            let Some(weights) = weights else { continue };
            let found = attentions(model, &format!("{side}_blocks"));
            if found.is_empty() {
                let class = model.class();
                return Err(Error::Argument(format!("`{side}`: the {class} has no {side} blocks with attention")));
            }
            for (block, count) in &found {
                let Some(layers) = weights.of(*block) else { continue };
                let weights = layers.of(*count).map_err(|given| {
                    let attentions = if *count == 1 { "attention" } else { "attentions" };
                    Error::Argument(format!("`{side}.block_{block}` has {count} {attentions}, and {given} weights"))
                })?;
                let path = |layer: usize| format!("{side}_blocks.{block}.attentions.{layer}");
                expanded.extend(weights.into_iter().enumerate().map(|(layer, weight)| (path(layer), weight)));
            }
            // Differs from diffusers: there, weights of a block that has no attention are passed over.
            if let Some(unknown) = weights.numbers().find(|number| found.iter().all(|(block, _)| block != number)) {
                let known: Vec<_> = found.iter().map(|(block, _)| format!("block_{block}")).collect();
                let known = known.join(", ");
                return Err(Error::Argument(format!(
                    "`{side}.block_{unknown}` is no block with attention: those are {known}"
                )));
            }
        }
        Ok(expanded)
    }
}

/// The blocks with attention, by number, and how many attentions each has.
fn attentions(model: &Node, side: &str) -> Vec<(usize, usize)> {
    let blocks = model.get(side).map_or_else(Vec::new, |side| side.children());
    let count = |(number, (_, block)): (usize, (String, Node))| {
        Some((number, block.get("attentions")?.children().len())).filter(|(_, count)| *count > 0)
    };
    blocks.into_iter().enumerate().filter_map(count).collect()
}

impl SideWeights {
    fn of(&self, block: usize) -> Option<&LayerWeights> {
        match self {
            Self::EachBlock(layers) => Some(layers),
            Self::Blocks(blocks) => blocks.iter().find(|(number, _)| *number == block).map(|(_, layers)| layers),
        }
    }

    /// The blocks that are named.
    fn numbers(&self) -> impl Iterator<Item = usize> {
        let named = if let Self::Blocks(blocks) = self { &blocks[..] } else { &[] };
        named.iter().map(|(number, _)| *number)
    }
}

impl LayerWeights {
    /// A weight for each of `count` attentions, or how many there are if they are others.
    fn of(&self, count: usize) -> std::result::Result<Vec<f64>, usize> {
        match self {
            Self::All(weight) => Ok(vec![*weight; count]),
            Self::Each(weights) => match weights[..] {
                [weight] => Ok(vec![weight; count]),
                _ if weights.len() == count => Ok(weights.clone()),
                _ => Err(weights.len()),
            },
        }
    }
}

impl UNetWeight {
    /// The weight of each layer of `model`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a block that the model has not, or that has another number of attentions.
    pub fn resolve(&self, model: &Node) -> Result<LayerWeight> {
        Ok(match self {
            Self::Everywhere(weight) => LayerWeight { blocks: vec![], elsewhere: *weight },
            Self::ByBlock(blocks) => LayerWeight { blocks: blocks.expanded(model)?, elsewhere: 1.0 },
        })
    }
}

/// The weight of an adapter in each layer of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeight {
    blocks: Vec<(String, f64)>,
    elsewhere: f64,
}

impl LayerWeight {
    /// The weight in the layer at `path`.
    #[must_use]
    pub fn at(&self, path: &str) -> f64 {
        let find = |fits: &dyn Fn(&str) -> bool| self.blocks.iter().find(|(block, _)| fits(block));
        let inside = find(&|block| path.contains(block));
        let beside = || {
            let mut names = path.split('.');
            let (side, number, _, layer) = (names.next()?, names.next()?, names.next()?, names.next()?);
            let attention = format!("{side}.{number}.attentions.{layer}");
            find(&|block| block == attention)
        };
        inside.or_else(beside).map_or(self.elsewhere, |(_, weight)| *weight)
    }
}

impl From<f64> for UNetWeight {
    fn from(weight: f64) -> Self {
        Self::Everywhere(weight)
    }
}

impl From<BlockWeights> for UNetWeight {
    fn from(weights: BlockWeights) -> Self {
        Self::ByBlock(weights)
    }
}

impl<L: Into<LayerWeights>> From<L> for SideWeights {
    fn from(weights: L) -> Self {
        Self::EachBlock(weights.into())
    }
}

impl<const N: usize> From<[(usize, LayerWeights); N]> for SideWeights {
    fn from(blocks: [(usize, LayerWeights); N]) -> Self {
        Self::Blocks(blocks.into())
    }
}

impl From<f64> for LayerWeights {
    fn from(weight: f64) -> Self {
        Self::All(weight)
    }
}

impl<const N: usize> From<[f64; N]> for LayerWeights {
    fn from(weights: [f64; N]) -> Self {
        Self::Each(weights.into())
    }
}

impl From<Vec<f64>> for LayerWeights {
    fn from(weights: Vec<f64>) -> Self {
        Self::Each(weights)
    }
}
