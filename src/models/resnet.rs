//! The residual block that UNets and VAEs are made of.
//!
//! Mirrors `ResnetBlock2D` of `diffusers/models/resnet.py` (0.42.1). The block is He et al. 2016, arXiv:1512.03385,
//! with the time embedding of Ho et al. 2020, arXiv:2006.11239, and the scale and shift of Dhariwal and Nichol 2021,
//! arXiv:2105.05233.

use super::downsampling::Downsample2D;
use super::upsampling::Upsample2D;
use crate::error::{Error, Result};
use crate::nn::{Activation, Conv2d, Conv2dConfig, GroupNorm, Linear, Module, Node, Scope};
use crate::torch::{NumberExt, TensorExt};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::sync::Arc;
use tch::Tensor;

/// How the time embedding enters a [`ResnetBlock2D`]: `resnet_time_scale_shift` in `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum TimeEmbeddingNorm {
    /// Added before the second norm: `default`.
    #[default]
    Default,
    /// Scales and shifts what the second norm gives: `scale_shift`.
    ScaleShift,
}

impl FromStr for TimeEmbeddingNorm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "default" => Ok(Self::Default),
            "scale_shift" => Ok(Self::ScaleShift),
            other => Err(Error::Unsupported(format!("`{other}` is not supported: use default or scale_shift"))),
        }
    }
}

impl TryFrom<String> for TimeEmbeddingNorm {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// Whether a [`ResnetBlock2D`] changes the picture's size between its first norm and its first convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resample {
    /// The size stays.
    #[default]
    None,
    /// Doubled, by repeating pixels: `up=True`.
    Up,
    /// Halved, by averaging: `down=True`.
    Down,
}

/// What a [`ResnetBlock2D`] is made with; [`ResnetBlock2DConfig::new`] holds diffusers' defaults, but for
/// `temb_channels`, 512 there.
///
/// diffusers' `dropout` does nothing at inference, and its `pre_norm` and `conv_shortcut` nothing at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetBlock2DConfig {
    /// Channels that come in.
    pub in_channels: i64,
    /// Channels between the two convolutions.
    pub out_channels: i64,
    /// Channels that come out; as `out_channels` if none.
    pub conv_2d_out_channels: Option<i64>,
    /// Channels of the time embedding; none if the block takes no time embedding, the default.
    pub temb_channels: Option<i64>,
    /// Groups of the first norm; 32.
    pub groups: i64,
    /// Groups of the second norm; as `groups` if none.
    pub groups_out: Option<i64>,
    /// What both norms add to the variance; 1e-6.
    pub eps: f64,
    /// The activation; SiLU.
    pub non_linearity: Activation,
    /// Whether the time embedding is projected without the activation before it.
    pub skip_time_act: bool,
    /// How the time embedding enters.
    pub time_embedding_norm: TimeEmbeddingNorm,
    /// What the sum at the end is divided by; 1.
    pub output_scale_factor: f64,
    /// Whether the residual goes through a pointwise convolution; if none, where the channels differ.
    pub use_in_shortcut: Option<bool>,
    /// Whether that convolution has a bias; yes.
    pub conv_shortcut_bias: bool,
    /// Whether the block changes the size.
    pub resample: Resample,
}

impl ResnetBlock2DConfig {
    /// The defaults, from `in_channels` to `out_channels`.
    #[must_use]
    pub fn new(in_channels: i64, out_channels: i64) -> Self {
        Self {
            in_channels,
            out_channels,
            conv_2d_out_channels: None,
            temb_channels: None,
            groups: 32,
            groups_out: None,
            eps: 1e-6,
            non_linearity: Activation::Silu,
            skip_time_act: false,
            time_embedding_norm: TimeEmbeddingNorm::Default,
            output_scale_factor: 1.0,
            use_in_shortcut: None,
            conv_shortcut_bias: true,
            resample: Resample::None,
        }
    }
}

/// What changes the size within the block. Both are without weights.
#[derive(Debug)]
enum Resampler {
    None,
    Up(Upsample2D),
    Down(Downsample2D),
}

impl Resampler {
    fn new(scope: &Scope<'_>, resample: Resample, channels: i64) -> Self {
        match resample {
            Resample::None => Self::None,
            Resample::Up => Self::Up(Upsample2D::new(scope / "upsample", channels)),
            Resample::Down => Self::Down(Downsample2D::new(scope / "downsample", channels)),
        }
    }

    fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(hidden_states.shallow_clone()),
            Self::Up(upsample) => upsample.forward(hidden_states, None),
            Self::Down(downsample) => downsample.forward(hidden_states),
        }
    }
}

/// Norm, activation, convolution, twice, with the time embedding in between and the input added at the end.
#[derive(Debug)]
pub struct ResnetBlock2D {
    node: Node,
    norm1: GroupNorm,
    resampler: Resampler,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    config: ResnetBlock2DConfig,
}

impl ResnetBlock2D {
    /// Reads `norm1`, `conv1`, `time_emb_proj`, `norm2`, `conv2` and `conv_shortcut`, as far as `config` has them.
    ///
    /// # Errors
    /// If the weights cannot be had; [`Error::Config`] for `scale_shift` without a time embedding.
    pub fn new(scope: Scope<'_>, config: ResnetBlock2DConfig) -> Result<Self> {
        let ResnetBlock2DConfig { in_channels, out_channels, groups, eps, .. } = config;
        let last_channels = config.conv_2d_out_channels.unwrap_or(out_channels);
        let projected = match (config.temb_channels, config.time_embedding_norm) {
            (None, TimeEmbeddingNorm::ScaleShift) => {
                return Err(Error::Config("a block with scale_shift needs `temb_channels`".into()));
            }
            (_, TimeEmbeddingNorm::Default) => out_channels,
            (_, TimeEmbeddingNorm::ScaleShift) => 2 * out_channels,
        };
        let norm1 = GroupNorm::new(&scope / "norm1", groups, in_channels, eps)?;
        let conv1 = Conv2d::new(&scope / "conv1", in_channels, out_channels, Conv2dConfig::SAME)?;
        let project = |temb_channels| Linear::new(&scope / "time_emb_proj", temb_channels, projected, true);
        let time_emb_proj = config.temb_channels.map(project).transpose()?;
        let norm2 = GroupNorm::new(&scope / "norm2", config.groups_out.unwrap_or(groups), out_channels, eps)?;
        let conv2 = Conv2d::new(&scope / "conv2", out_channels, last_channels, Conv2dConfig::SAME)?;
        let resampler = Resampler::new(&scope, config.resample, in_channels);
        let make = if config.conv_shortcut_bias { Conv2d::new } else { Conv2d::without_bias };
        let shortcut = || make(&scope / "conv_shortcut", in_channels, last_channels, Conv2dConfig::POINTWISE);
        let use_in_shortcut = config.use_in_shortcut.unwrap_or(in_channels != last_channels);
        let conv_shortcut = use_in_shortcut.then(shortcut).transpose()?;
        scope.attach(Arc::new(config));
        let node = scope.finish::<Self>();
        Ok(Self { node, norm1, resampler, conv1, time_emb_proj, norm2, conv2, conv_shortcut, config })
    }

    /// `temb` is the time embedding, before its activation.
    ///
    /// # Shapes
    /// `[batch, in_channels, height, width]` and `[batch, temb_channels]` to `[batch, out_channels, height', width']`.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is a time embedding and the block takes none, or the other way round;
    /// [`Error::Torch`] if the shapes do not fit.
    pub fn forward(&self, hidden_states: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let [hidden_states] = match temb {
            Some(temb) => self.node.call([hidden_states, temb], |[x, temb]| Ok([self.residual(x, Some(temb))?])),
            None => self.node.call([hidden_states], |[x]| Ok([self.residual(x, None)?])),
        }?;
        Ok(hidden_states)
    }

    fn residual(&self, input: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let act = self.config.non_linearity;
        let hidden_states = act.forward_into(self.norm1.forward(input)?)?;
        let (input, hidden_states) = self.resample(input, hidden_states)?;
        let hidden_states = convolve(&self.conv1, hidden_states)?;
        let hidden_states = act.forward_into(self.second_norm(hidden_states, temb)?)?;
        let hidden_states = convolve(&self.conv2, hidden_states)?;
        let input = match &self.conv_shortcut {
            Some(conv_shortcut) => conv_shortcut.forward(&input)?,
            None => input,
        };
        let output = hidden_states.add_into(&input)?;
        Ok(if self.config.output_scale_factor == 1.0 {
            output
        } else {
            output.over(self.config.output_scale_factor)?
        })
    }

    /// Changes the size of the input and of what the first norm and activation made of it.
    fn resample(&self, input: &Tensor, hidden_states: Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.resampler.forward(input)?, self.resampler.forward(&hidden_states)?))
    }

    /// The second norm, and the time embedding before or after it.
    fn second_norm(&self, hidden_states: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let temb = match (&self.time_emb_proj, temb) {
            (None, None) => return self.norm2.forward(&hidden_states),
            (Some(proj), Some(temb)) if self.config.skip_time_act => proj.forward(temb)?,
            (Some(proj), Some(temb)) => proj.forward(&self.config.non_linearity.forward(temb)?)?,
            (None, Some(_)) => return Err(Error::Argument("this block takes no time embedding".into())),
            (Some(_), None) => return Err(Error::Argument("this block needs a time embedding".into())),
        };
        let temb = temb.f_unsqueeze(-1)?.f_unsqueeze(-1)?;
        match self.config.time_embedding_norm {
            TimeEmbeddingNorm::Default => self.norm2.forward(&hidden_states.add_into(&temb)?),
            TimeEmbeddingNorm::ScaleShift => {
                let [scale, shift] = temb.chunks::<2>(1)?;
                let hidden_states = self.norm2.forward(&hidden_states)?;
                Ok(hidden_states.f_mul(&scale.plus(1.0)?)?.f_add(&shift)?)
            }
        }
    }
}

/// The convolution of a tensor that nobody needs afterwards: its memory is free for the steps that follow.
fn convolve(conv: &Conv2d, hidden_states: Tensor) -> Result<Tensor> {
    conv.forward(&hidden_states)
}

impl Module for ResnetBlock2D {
    fn node(&self) -> &Node {
        &self.node
    }
}
