//! The run of the two schedulers after DPM-Solver-2: a step to the midpoint of the next level, then the whole step.
//!
//! Mirrors what `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler` of diffusers 0.42.1 have in common.

use super::levels::{LevelOptions, Levels, Request, TrainingLevels, first_once_others_twice};
use super::noise_run::{NoiseLevels, NoiseRun, pred_original_sample};
use super::scheduling_utils::PredictionType;
use super::step_math::{difference_quotient, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The options of both.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) levels: LevelOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self { levels: LevelOptions::with_sensible_betas() }
    }
}

/// What the two can be told of the model.
pub(super) const PREDICTIONS: [PredictionType; 2] = [PredictionType::Epsilon, PredictionType::VPrediction];

/// The noise levels at each call of the model.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) levels: NoiseLevels,
    /// Where a step goes first, from the call that begins it.
    pub(super) midpoints: NoiseLevels,
    /// Where it ends.
    pub(super) ends: Vec<f32>,
}

/// [`LevelOptions::levels`] with whole timesteps for Karras's levels.
pub(super) fn rounded_levels(
    options: &LevelOptions,
    request: Request,
    training: &TrainingLevels,
    config: &ConfigMap,
) -> Result<Levels> {
    let mut laid_out = options.levels(request, training, config)?;
    if options.switches.use_karras_sigmas {
        laid_out.timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    }
    Ok(laid_out)
}

/// The timesteps of `laid_out`, and between each two of them that of the midpoint's level.
pub(super) fn with_midpoints(laid_out: &Levels, midpoints: &[f32], training: &TrainingLevels) -> Result<Vec<f64>> {
    let (first, others) = laid_out.timesteps.split_at(1);
    let mut timesteps = first.to_vec();
    for (sigma, timestep) in midpoints.iter().zip(others) {
        timesteps.extend([training.logs.timestep_of_tensor(*sigma)?, *timestep]);
    }
    Ok(timesteps)
}

/// Each level twice but the first, and the last one three times.
pub(super) fn for_each_call(levels: &[f32]) -> Vec<f32> {
    first_once_others_twice(levels).into_iter().chain(levels.last().copied()).collect()
}

/// What half a step gives.
pub(super) struct HalfStep {
    pub(super) sample: Tensor,
    pub(super) pred_original_sample: Tensor,
    /// The call that began the step, if this one ends it.
    pub(super) began: Option<usize>,
}

/// Where a run stands.
#[derive(Debug)]
pub(super) struct MidpointRun {
    levels: NoiseRun,
    training: Layout,
    layout: Option<Layout>,
    /// Where a step began, until its second call.
    sample: Option<Tensor>,
}

impl MidpointRun {
    pub(super) fn new(training: Layout) -> Self {
        Self { levels: NoiseRun::new(training.levels.clone()), training, layout: None, sample: None }
    }

    /// Starts a run.
    pub(super) fn start(&mut self, layout: Layout) {
        self.levels.start(layout.levels.clone());
        (self.layout, self.sample) = (Some(layout), None);
    }

    fn layout(&self) -> &Layout {
        self.layout.as_ref().unwrap_or(&self.training)
    }

    pub(super) fn begin_at(&mut self, index: usize) {
        self.levels.begin_at(index);
    }

    pub(super) fn timesteps(&self) -> &[f64] {
        self.levels.timesteps()
    }

    pub(super) fn sigmas(&self) -> &[f32] {
        self.levels.sigmas()
    }

    pub(super) fn init_noise_sigma(&self, options: &Options) -> f64 {
        self.levels.init_noise_sigma(options.levels.timestep_spacing)
    }

    pub(super) fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        self.levels.add_noise(original_samples, noise, timesteps)
    }

    /// The level that the call at `index` sees, and the standard deviation there.
    fn seen(&self, index: usize) -> (f32, f32) {
        let (levels, index) = match self.sample {
            None => (&self.layout().levels, index),
            Some(_) => (&self.layout().midpoints, index - 1),
        };
        (levels.sigmas[index], levels.deviations[index])
    }

    pub(super) fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let index = self.levels.locate(timestep)?;
        Ok(sample.f_div_scalar(f64::from(self.seen(index).1))?)
    }

    /// Goes to the midpoint, or from there on to the end.
    pub(super) fn step(
        &mut self,
        prediction_type: PredictionType,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
    ) -> Result<HalfStep> {
        let index = self.levels.locate(timestep)?;
        let (sigma, deviation) = self.seen(index);
        let x0 = pred_original_sample(prediction_type, model_output, sample, (sigma, deviation), sigma)?;
        let derivative = difference_quotient(sample, &x0, sigma)?;
        let layout = self.layout();
        let (moved, start, began) = match &self.sample {
            None => {
                let dt = layout.midpoints.sigmas[index] - sigma;
                (sum(times(&derivative, dt)?, sample)?, Some(sample.shallow_clone()), None)
            }
            Some(start) => {
                let dt = layout.ends[index - 1] - layout.levels.sigmas[index - 1];
                (sum(times(&derivative, dt)?, start)?, None, Some(index - 1))
            }
        };
        self.sample = start;
        self.levels.cursor.advance();
        Ok(HalfStep { sample: moved, pred_original_sample: x0, began })
    }
}
