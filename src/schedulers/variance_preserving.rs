//! Processes in which signal and noise have variance 1 together.
//!
//! x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon (arXiv:2006.11239, equation 4).

use super::step_math::{PerSample, mix};
use crate::error::{Error, Result};
use tch::Tensor;

/// alpha_bar at a timestep of the training.
pub(super) fn alpha_at(alphas_cumprod: &[f32], timestep: i64) -> Result<f32> {
    let alpha = usize::try_from(timestep).ok().and_then(|timestep| alphas_cumprod.get(timestep));
    alpha.copied().ok_or_else(|| {
        Error::Argument(format!("timestep {timestep} is not among the {} training timesteps", alphas_cumprod.len()))
    })
}

fn alphas_at(alphas_cumprod: &[f32], timesteps: &[f64], like: &Tensor) -> Result<PerSample> {
    let alphas = timesteps.iter().map(|timestep| alpha_at(alphas_cumprod, *timestep as i64));
    PerSample::new(&alphas.collect::<Result<Vec<_>>>()?, like)
}

/// x_t of `original_samples` and `noise`, with a timestep of the training for each sample.
pub(super) fn noised(
    alphas_cumprod: &[f32],
    original_samples: &Tensor,
    noise: &Tensor,
    timesteps: &[f64],
) -> Result<Tensor> {
    let (signal, sigma) = alphas_at(alphas_cumprod, timesteps, original_samples)?.signal_and_noise()?;
    mix(&signal, original_samples, &sigma, noise)
}

/// The velocity that takes `sample` to `noise` (arXiv:2202.00512, appendix D).
pub(super) fn velocity(alphas_cumprod: &[f32], sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
    let (signal, sigma) = alphas_at(alphas_cumprod, timesteps, sample)?.signal_and_noise()?;
    mix(&signal, noise, &sigma.f_neg()?, sample)
}

/// Refuses runs of more steps than the training's.
pub(super) fn at_most_trained(steps: usize, train: i64) -> Result<()> {
    match steps as i64 > train {
        true => Err(Error::Argument(format!(
            "`num_inference_steps` is {steps}, more than the {train} timesteps of the training"
        ))),
        false => Ok(()),
    }
}
