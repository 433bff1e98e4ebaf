//! How far DDPM's steps are spread, by `variance_type`.

use super::super::arrays::{sqrt, through_libtorch};
use super::super::step_math::{scaled, sum, times};
use super::Posterior;
use crate::error::{Error, Result};
use crate::torch::NumberExt;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which variance the posterior of a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum VarianceType {
    /// The posterior's own (equation 6).
    FixedSmall,
    /// The same, by way of its logarithm (arXiv:2205.09991).
    FixedSmallLog,
    /// That of the noising process.
    FixedLarge,
    FixedLargeLog,
    /// The model's second half of channels.
    Learned,
    /// Between `FixedSmall` and `FixedLarge`, where the model's second half of channels says (arXiv:2102.09672).
    LearnedRange,
    /// A value of another scheduler, or none that there is: diffusers spreads these as `FixedSmall`.
    #[serde(other)]
    Other,
}

impl VarianceType {
    pub(super) fn check(self) -> Result<()> {
        match self {
            // diffusers takes the root of the variance's logarithm, which is negative.
            Self::FixedLargeLog => Err(Error::Unsupported(
                "`variance_type` fixed_large_log: a step of it is not a number in diffusers, use fixed_large".into(),
            )),
            Self::Other => {
                tracing::warn!("DDPMScheduler does not know this `variance_type`, and takes it for fixed_small");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The model's prediction, and its variance if there is one.
    pub(super) fn split(self, output: &Tensor, sample: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let learned = matches!(self, Self::Learned | Self::LearnedRange);
        match (sample.size().get(1), output.size().get(1)) {
            (Some(channels), Some(found)) if learned && *found == channels * 2 => {
                Ok((output.f_narrow(1, 0, *channels)?, Some(output.f_narrow(1, *channels, *channels)?)))
            }
            (channels, found) if learned => Err(Error::Shape(format!(
                "`variance_type` is learned, so the model's output has twice the sample's {} channels, not {}",
                channels.copied().unwrap_or(0),
                found.copied().unwrap_or(0)
            ))),
            _ => Ok((output.shallow_clone(), None)),
        }
    }

    /// `noise` with the standard deviation of the step.
    pub(super) fn spread(self, posterior: &Posterior, predicted: Option<&Tensor>, noise: &Tensor) -> Result<Tensor> {
        let Posterior { alpha_prod_t, alpha_prod_t_prev, current_beta_t } = *posterior;
        let variance = ((1.0 - alpha_prod_t_prev) / (1.0 - alpha_prod_t) * current_beta_t).max(1e-20);
        match (self, predicted) {
            (Self::FixedSmallLog, _) => {
                let log = through_libtorch(variance, Tensor::f_log)?;
                scaled(through_libtorch(0.5 * log, Tensor::f_exp)?, noise)
            }
            (Self::FixedLarge, _) => scaled(sqrt(current_beta_t)?, noise),
            (Self::Learned, Some(predicted)) => Ok(predicted.f_sqrt()?.f_mul(noise)?),
            (Self::LearnedRange, Some(predicted)) => {
                let min_log = through_libtorch(variance, Tensor::f_log)?;
                let max_log = through_libtorch(current_beta_t, Tensor::f_log)?;
                let share = predicted.plus(1.0)?.over_(2.0)?;
                let rest = share.subtracted_from(1.0)?;
                let log = sum(times(&share, max_log)?, &times(&rest, min_log)?)?;
                Ok(log.times(0.5)?.f_exp()?.f_mul(noise)?)
            }
            _ => scaled(sqrt(variance)?, noise),
        }
    }
}
