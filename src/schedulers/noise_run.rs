//! A run over noise levels, as the samplers of k-diffusion walk them.
//!
//! Mirrors what `EulerDiscreteScheduler` of diffusers 0.42.1 and its siblings hold between two steps.

use super::arrays::sqrt;
use super::cursor::Cursor;
use super::scheduling_utils::PredictionType;
use super::spacing::TimestepSpacing;
use super::step_math::{PerSample, onto, scaled, times};
use crate::error::Result;
use tch::Tensor;

/// Timesteps with their noise levels, and the final level.
#[derive(Clone, Debug, Default)]
pub(super) struct NoiseLevels {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
    /// sqrt(sigma^2 + 1): the standard deviation of the noised sample.
    pub(super) deviations: Vec<f32>,
}

impl NoiseLevels {
    pub(super) fn new(timesteps: Vec<f64>, sigmas: Vec<f32>) -> Result<Self> {
        let deviations = sigmas.iter().map(|sigma| sqrt(sigma * sigma + 1.0)).collect::<Result<_>>()?;
        Ok(Self { timesteps, sigmas, deviations })
    }

    /// All of the training's timesteps, the noisiest first.
    pub(super) fn training(training_sigmas: &[f32]) -> Result<Self> {
        let timesteps = (0..training_sigmas.len()).rev().map(|t| t as f64).collect();
        Self::new(timesteps, training_sigmas.iter().rev().copied().chain([0.0]).collect())
    }

    /// The standard deviation of pure noise at the run's start.
    fn init_noise_sigma(&self, spacing: TimestepSpacing) -> f64 {
        let levels = if spacing == TimestepSpacing::Leading { &self.deviations } else { &self.sigmas };
        f64::from(levels.iter().copied().fold(0.0, f32::max))
    }

    /// `original_samples` with `noise` at the level of a step each.
    fn add_noise(&self, steps: &[usize], original_samples: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let sigmas: Vec<f32> = steps.iter().map(|step| self.sigmas[*step]).collect();
        let sigmas = PerSample::new(&sigmas, original_samples)?.into_tensor().f_to_device(noise.device())?;
        onto(original_samples, noise.f_mul(&sigmas)?)
    }
}

/// The levels of a run and where it stands. Until there is a run, all of the training's timesteps are walked, as in diffusers.
#[derive(Debug)]
pub(super) struct NoiseRun {
    training: NoiseLevels,
    levels: Option<NoiseLevels>,
    pub(super) cursor: Cursor,
}

impl NoiseRun {
    pub(super) fn new(training: NoiseLevels) -> Self {
        Self { training, levels: None, cursor: Cursor::default() }
    }

    /// Starts a run.
    pub(super) fn start(&mut self, levels: NoiseLevels) {
        (self.levels, self.cursor) = (Some(levels), Cursor::default());
    }

    /// The levels that are walked.
    pub(super) fn levels(&self) -> &NoiseLevels {
        self.levels.as_ref().unwrap_or(&self.training)
    }

    /// The index of the step to take from `timestep`.
    pub(super) fn locate(&mut self, timestep: f64) -> Result<usize> {
        let levels = self.levels.as_ref().unwrap_or(&self.training);
        self.cursor.locate(&levels.timesteps, timestep)
    }

    pub(super) fn begin_at(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    /// Empty before there is a run.
    pub(super) fn timesteps(&self) -> &[f64] {
        self.levels.as_ref().map_or(&[], |levels| &levels.timesteps)
    }

    pub(super) fn sigmas(&self) -> &[f32] {
        &self.levels().sigmas
    }

    pub(super) fn init_noise_sigma(&self, spacing: TimestepSpacing) -> f64 {
        self.levels().init_noise_sigma(spacing)
    }

    /// `sample` with variance 1.
    pub(super) fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let index = self.locate(timestep)?;
        Ok(sample.f_div_scalar(f64::from(self.levels().deviations[index]))?)
    }

    pub(super) fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let levels = self.levels();
        levels.add_noise(&self.cursor.noise_indices(&levels.timesteps, timesteps)?, original_samples, noise)
    }
}

/// The noise-free sample that a prediction stands for.
///
/// A velocity is one of the process that keeps the variance, and its signal is sample / (sigma^2 + 1).
pub(super) fn pred_original_sample(
    prediction_type: PredictionType,
    output: &Tensor,
    sample: &Tensor,
    (sigma, deviation): (f32, f32),
    sigma_hat: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Sample => Ok(output.shallow_clone()),
        PredictionType::VPrediction => {
            let variance = sigma * sigma + 1.0;
            let direct = times(output, -sigma / deviation)?;
            onto(&direct, sample.f_div_scalar(f64::from(variance))?)
        }
        _ => onto(sample, scaled(-sigma_hat, output)?),
    }
}
