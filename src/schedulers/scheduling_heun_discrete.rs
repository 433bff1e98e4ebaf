//! Heun's method on the probability flow ODE (arXiv:2206.00364, algorithm 1).
//!
//! Mirrors `diffusers/schedulers/scheduling_heun_discrete.py` at 0.42.1.

use super::betas::BetaSchedule;
use super::levels::{LevelOptions, Request, TrainingLevels, first_once_others_twice};
use super::noise_run::{NoiseLevels, NoiseRun, pred_original_sample};
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::step_math::{difference_quotient, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use crate::torch::NumberExt;
use serde::{Deserialize, Serialize};
use tch::Tensor;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    levels: LevelOptions,
    clip_sample: bool,
    clip_sample_range: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { levels: LevelOptions::with_sensible_betas(), clip_sample: false, clip_sample_range: 1.0 }
    }
}

/// Heun's method of order two: a step to the next level, then the same step with the mean of both ends' derivatives.
///
/// [`Scheduler::timesteps`] holds all timesteps but the first twice, one for each call of the model.
#[derive(Debug)]
pub struct HeunDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    levels: TrainingLevels,
    run: NoiseRun,
    /// The first call's part of a step, until the second call.
    half: Option<Half>,
}

/// What the second call needs of the first.
#[derive(Debug)]
struct Half {
    sample: Tensor,
    derivative: Tensor,
    dt: f32,
}

impl SchedulerMixin for HeunDiscreteScheduler {
    const CLASS_NAME: &'static str = "HeunDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        options
            .levels
            .check(Self::CLASS_NAME, &[PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample])?;
        let levels = TrainingLevels::new(&options.levels.betas.alphas_cumprod_of(false, &[BetaSchedule::Exp])?)?;
        let training = lay_out(&options.levels, options.levels.whole_training()?, &levels, &config)?;
        Ok(Self { options, config, levels, run: NoiseRun::new(training), half: None })
    }
}

fn lay_out(
    options: &LevelOptions,
    request: Request,
    training: &TrainingLevels,
    config: &ConfigMap,
) -> Result<NoiseLevels> {
    let laid_out = options.levels(request, training, config)?;
    let before_last = &laid_out.sigmas[..laid_out.sigmas.len() - 1];
    let sigmas = first_once_others_twice(before_last).into_iter().chain([0.0]).collect();
    let timesteps = first_once_others_twice(&laid_out.timesteps);
    NoiseLevels::new(timesteps.into_iter().map(|t| f64::from(t as f32)).collect(), sigmas)
}

impl Scheduler for HeunDiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn order(&self) -> usize {
        2
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let request = self.options.levels.request_or_custom(timesteps, Self::CLASS_NAME)?;
        self.run.start(lay_out(&self.options.levels, request, &self.levels, &self.config)?);
        self.half = None;
        Ok(())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma(self.options.levels.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        self.run.scale_model_input(sample, timestep)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let index = self.run.locate(timestep)?;
        let levels = self.run.levels();
        // The level that the model has just seen: where the step begins, or at its second call, where it ends.
        let (sigma, deviation) = (levels.sigmas[index], levels.deviations[index]);
        let prediction_type = self.options.levels.prediction_type;
        let mut x0 = pred_original_sample(prediction_type, model_output, sample, (sigma, deviation), sigma)?;
        if self.options.clip_sample {
            x0 = x0.clamped(-self.options.clip_sample_range, self.options.clip_sample_range)?;
        }
        let derivative = difference_quotient(sample, &x0, sigma)?;
        let (prev_sample, half) = match &self.half {
            None => {
                let dt = levels.sigmas[index + 1] - sigma;
                let ahead = sum(times(&derivative, dt)?, sample)?;
                (ahead, Some(Half { sample: sample.shallow_clone(), derivative, dt }))
            }
            Some(half) => {
                let mean = half.derivative.f_add(&derivative)?.over_(2.0)?;
                (sum(times(&mean, half.dt)?, &half.sample)?, None)
            }
        };
        self.half = half;
        self.run.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }
}
