//! Embeddings of the timestep, and of other numbers.
//!
//! Mirrors `get_timestep_embedding`, `Timesteps` and `TimestepEmbedding` of `diffusers/models/embeddings.py` (0.42.1):
//! Ho et al. 2020, arXiv:2006.11239, after Vaswani et al. 2017, arXiv:1706.03762.

use crate::error::{Error, Result};
use crate::nn::{Activation, Linear, Module, Node, Scope};
use crate::torch::NumberExt;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// The longest wavelength of the sinusoids, in timesteps over 2 pi.
const MAX_PERIOD: f64 = 10_000.0;

/// Turns a number into sines and cosines of it, at geometrically spaced frequencies. There are no weights.
#[derive(Debug)]
pub struct Timesteps {
    num_channels: i64,
    flip_sin_to_cos: bool,
    downscale_freq_shift: f64,
    /// The frequencies on each device that asked for them: computed there, as diffusers does, since an exponential has
    /// other last bits elsewhere.
    frequencies: Mutex<Vec<(Device, Tensor)>>,
}

impl Timesteps {
    /// `num_channels` sinusoids, the sines first unless `flip_sin_to_cos`.
    ///
    /// # Errors
    /// [`Error::Config`] if there are fewer than two channels, or `downscale_freq_shift` leaves no frequencies.
    pub fn new(num_channels: i64, flip_sin_to_cos: bool, downscale_freq_shift: f64) -> Result<Self> {
        if num_channels < 2 || (num_channels / 2) as f64 <= downscale_freq_shift {
            return Err(Error::Config(format!(
                "{num_channels} channels are too few for a timestep embedding with `freq_shift` {downscale_freq_shift}"
            )));
        }
        let timesteps =
            Self { num_channels, flip_sin_to_cos, downscale_freq_shift, frequencies: Mutex::new(Vec::new()) };
        drop(timesteps.frequencies(Device::Cpu)?);
        Ok(timesteps)
    }

    /// The embedding, always in float32.
    ///
    /// # Shapes
    /// `[count]`, of any real dtype, to `[count, num_channels]`.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is not one dimension.
    pub fn forward(&self, timesteps: &Tensor) -> Result<Tensor> {
        let timesteps = timesteps.f_unsqueeze(1)?.f_to_kind(Kind::Float)?;
        // In a trace the frequencies are a constant, which is sent after the timesteps wherever these are moved.
        let frequencies = self.frequencies(timesteps.device())?.f_to_other(&timesteps, false, false)?;
        let angles = timesteps.f_mul(&frequencies)?;
        let (sin, cos) = (angles.f_sin()?, angles.f_cos()?);
        let embedding = Tensor::f_cat(&if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }, -1)?;
        Ok(if self.num_channels % 2 == 1 { embedding.f_constant_pad_nd([0, 1, 0, 0])? } else { embedding })
    }

    /// The frequencies on `device`, `[1, num_channels / 2]`.
    fn frequencies(&self, device: Device) -> Result<Tensor> {
        let mut known = self.frequencies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frequencies)) = known.iter().find(|(known, _)| *known == device) {
            return Ok(frequencies.shallow_clone());
        }
        let half = self.num_channels / 2;
        let exponent = Tensor::f_arange(half, (Kind::Float, device))?
            .times(-MAX_PERIOD.ln())?
            .over(half as f64 - self.downscale_freq_shift)?;
        let frequencies = exponent.f_exp()?.f_unsqueeze(0)?;
        known.push((device, frequencies.shallow_clone()));
        Ok(frequencies)
    }
}

/// What a [`TimestepEmbedding`] is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestepEmbeddingConfig {
    /// Channels that come in.
    pub in_channels: i64,
    /// Channels that come out.
    pub time_embed_dim: i64,
    /// The activation between the two layers; SiLU.
    pub act_fn: Activation,
    /// The activation at the end; none.
    pub post_act_fn: Option<Activation>,
    /// Channels of a condition that is added to the input, such as LCM's guidance; none.
    pub cond_proj_dim: Option<i64>,
}

impl TimestepEmbeddingConfig {
    /// diffusers' defaults, from `in_channels` to `time_embed_dim`.
    #[must_use]
    pub fn new(in_channels: i64, time_embed_dim: i64) -> Self {
        Self { in_channels, time_embed_dim, act_fn: Activation::Silu, post_act_fn: None, cond_proj_dim: None }
    }
}

/// Two linear layers over sinusoids, or over any other vector.
#[derive(Debug)]
pub struct TimestepEmbedding {
    node: Node,
    linear_1: Linear,
    cond_proj: Option<Linear>,
    linear_2: Linear,
    config: TimestepEmbeddingConfig,
}

impl TimestepEmbedding {
    /// Reads `linear_1`, `linear_2` and, if there is a condition, `cond_proj`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, config: TimestepEmbeddingConfig) -> Result<Self> {
        let TimestepEmbeddingConfig { in_channels, time_embed_dim, .. } = config;
        let linear_1 = Linear::new(&scope / "linear_1", in_channels, time_embed_dim, true)?;
        let project = |cond_proj_dim| Linear::new(&scope / "cond_proj", cond_proj_dim, in_channels, false);
        let cond_proj = config.cond_proj_dim.map(project).transpose()?;
        let linear_2 = Linear::new(&scope / "linear_2", time_embed_dim, time_embed_dim, true)?;
        Ok(Self { node: scope.finish::<Self>(), linear_1, cond_proj, linear_2, config })
    }

    /// # Shapes
    /// `[batch, in_channels]` and, if given, `[batch, cond_proj_dim]` to `[batch, time_embed_dim]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a condition without `cond_proj`; [`Error::Torch`] if the shapes do not fit.
    pub fn forward(&self, sample: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        let [embedding] = match condition {
            None => self.node.call([sample], |[sample]| Ok([self.embed(sample)?])),
            Some(condition) => self.node.call([sample, condition], |[sample, condition]| {
                let Some(cond_proj) = &self.cond_proj else {
                    return Err(Error::Argument("`timestep_cond` needs a model with `time_cond_proj_dim`".into()));
                };
                Ok([self.embed(&sample.f_add(&cond_proj.forward(condition)?)?)?])
            }),
        }?;
        Ok(embedding)
    }

    fn embed(&self, sample: &Tensor) -> Result<Tensor> {
        let hidden = self.config.act_fn.forward(&self.linear_1.forward(sample)?)?;
        let embedding = self.linear_2.forward(&hidden)?;
        match self.config.post_act_fn {
            Some(act) => act.forward(&embedding),
            None => Ok(embedding),
        }
    }
}

impl Module for TimestepEmbedding {
    fn node(&self) -> &Node {
        &self.node
    }
}
