//! Euler's method with ancestral noise: each step goes too far down, then adds fresh noise.
//!
//! Mirrors `diffusers/schedulers/scheduling_euler_ancestral_discrete.py` at 0.42.1, after k-diffusion's
//! `sample_euler_ancestral`. The split of the noise is that of DDPM (arXiv:2006.11239) in the terms of arXiv:2206.00364.

use super::arrays::{interp, sqrt};
use super::betas::{BetaConfig, keep_last_sigma_finite, training_sigmas};
use super::noise_run::{NoiseLevels, NoiseRun, pred_original_sample};
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{difference_quotient, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
    rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// Euler ancestral: random, so that a seed's picture also depends on the number of steps.
#[derive(Debug)]
pub struct EulerAncestralDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    training_sigmas: Vec<f32>,
    run: NoiseRun,
    splits: Vec<Split>,
}

/// How a step between two noise levels is split.
#[derive(Clone, Copy, Debug)]
struct Split {
    /// The level that the deterministic part goes down to.
    sigma_down: f32,
    /// The fresh noise that leads back up.
    sigma_up: f32,
}

impl Split {
    fn new(sigma_from: f32, sigma_to: f32) -> Result<Self> {
        let (from_squared, to_squared) = (sigma_from * sigma_from, sigma_to * sigma_to);
        let sigma_up = sqrt(to_squared * (from_squared - to_squared) / from_squared)?;
        Ok(Self { sigma_down: sqrt(to_squared - sigma_up * sigma_up)?, sigma_up })
    }
}

impl SchedulerMixin for EulerAncestralDiscreteScheduler {
    const CLASS_NAME: &'static str = "EulerAncestralDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if !matches!(options.prediction_type, PredictionType::Epsilon | PredictionType::VPrediction) {
            return Err(Error::Unsupported(format!(
                "EulerAncestralDiscreteScheduler has no `prediction_type` {:?}: use epsilon or v_prediction",
                options.prediction_type
            )));
        }
        let mut alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        let training_sigmas = training_sigmas(&alphas_cumprod)?;
        let run = NoiseRun::new(NoiseLevels::training(&training_sigmas)?);
        Ok(Self { options, config, training_sigmas, run, splits: Vec::new() })
    }
}

impl Scheduler for EulerAncestralDiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let steps = timesteps.steps(Self::CLASS_NAME)?;
        let options = &self.options;
        options.betas.check()?;
        let train = options.betas.num_train_timesteps;
        let spaced = options.timestep_spacing.timesteps(train, steps, options.steps_offset)?;
        let timesteps: Vec<f64> = spaced.into_iter().map(|t| f64::from(t as f32)).collect();
        let sigmas = timesteps.iter().map(|t| interp(*t, &self.training_sigmas) as f32).chain([0.0]).collect();
        let levels = NoiseLevels::new(timesteps, sigmas)?;
        let pairs = levels.sigmas.windows(2);
        self.splits = pairs.map(|pair| Split::new(pair[0], pair[1])).collect::<Result<_>>()?;
        self.run.start(levels);
        Ok(())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma(self.options.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        self.run.scale_model_input(sample, timestep)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let index = self.run.locate(timestep)?;
        let levels = self.run.levels();
        let kind = model_output.f_kind()?;
        let sample = sample.f_to_kind(Kind::Float)?;
        let (sigma, deviation) = (levels.sigmas[index], levels.deviations[index]);
        let split = self.splits.get(index).copied();
        let Split { sigma_down, sigma_up } = split.map_or_else(|| Split::new(sigma, levels.sigmas[index + 1]), Ok)?;
        let x0 = pred_original_sample(self.options.prediction_type, model_output, &sample, (sigma, deviation), sigma)?;
        let mut derivative = difference_quotient(&sample, &x0, sigma)?;
        let dt = sigma_down - sigma;
        let down = sum(derivative.f_mul_scalar_(f64::from(dt))?, &sample)?;
        let noise = options.noise(model_output, kind)?;
        let prev_sample = sum(down, &times(&noise, sigma_up)?)?.f_to_kind(kind)?;
        self.run.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }
}
