//! Denoising diffusion probabilistic models (arXiv:2006.11239).
//!
//! Mirrors `diffusers/schedulers/scheduling_ddpm.py` at 0.42.1.

mod variance;

use super::arrays::sqrt;
use super::betas::{BetaConfig, BetaSchedule};
use super::cursor::takes_no_custom;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{LimitOptions, axpby, predicted_x0, sum};
use super::variance_preserving::{alpha_at, at_most_trained, noised, velocity};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use variance::VarianceType;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    #[serde(flatten)]
    limit: LimitOptions,
    variance_type: VarianceType,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    steps_offset: i64,
    rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            limit: LimitOptions::default(),
            variance_type: VarianceType::FixedSmall,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// DDPM: samples from the posterior of each step, random down to timestep 0.
///
/// Before [`Scheduler::set_timesteps`] it walks the training's timesteps one by one.
#[derive(Debug)]
pub struct DDPMScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
}

/// What a step from timestep t is made of; `prev` stands for the timestep that it goes to.
#[derive(Clone, Copy, Debug)]
struct Posterior {
    alpha_prod_t: f32,
    alpha_prod_t_prev: f32,
    /// The variance that the noising process adds between the two.
    current_beta_t: f32,
}

impl Posterior {
    /// The weights of x_0 and of x_t in the posterior's mean (equation 7).
    fn mean(&self) -> Result<(f32, f32)> {
        let (beta_prod_t, beta_prod_t_prev) = (1.0 - self.alpha_prod_t, 1.0 - self.alpha_prod_t_prev);
        let current_alpha_t = self.alpha_prod_t / self.alpha_prod_t_prev;
        let of_x0 = (sqrt(self.alpha_prod_t_prev)? * self.current_beta_t) / beta_prod_t;
        let of_sample = sqrt(current_alpha_t)? * beta_prod_t_prev / beta_prod_t;
        Ok((of_x0, of_sample))
    }
}

impl SchedulerMixin for DDPMScheduler {
    const CLASS_NAME: &'static str = "DDPMScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("DDPMScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        options.variance_type.check()?;
        let schedules = [BetaSchedule::Laplace, BetaSchedule::Sigmoid];
        let alphas_cumprod = options.betas.alphas_cumprod_of(options.rescale_betas_zero_snr, &schedules)?;
        Ok(Self { options, config, alphas_cumprod, timesteps: Vec::new() })
    }
}

impl DDPMScheduler {
    /// The timestep after `timestep`; below 0 after the last one.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is none of the run's, once there is a run.
    pub fn previous_timestep(&self, timestep: i64) -> Result<i64> {
        if self.timesteps.is_empty() {
            return Ok(timestep - 1);
        }
        let index = self.timesteps.iter().position(|t| *t as i64 == timestep).ok_or_else(|| {
            Error::Argument(format!("timestep {timestep} is none of this run's {} timesteps", self.timesteps.len()))
        })?;
        Ok(self.timesteps.get(index + 1).map_or(-1, |t| *t as i64))
    }

    fn posterior(&self, timestep: i64) -> Result<Posterior> {
        let prev_timestep = self.previous_timestep(timestep)?;
        let alpha_prod_t = alpha_at(&self.alphas_cumprod, timestep)?;
        let alpha_prod_t_prev = if prev_timestep >= 0 { alpha_at(&self.alphas_cumprod, prev_timestep)? } else { 1.0 };
        Ok(Posterior { alpha_prod_t, alpha_prod_t_prev, current_beta_t: 1.0 - alpha_prod_t / alpha_prod_t_prev })
    }
}

/// Custom timesteps as integers, if they go down from one of the training's.
pub(super) fn descending(custom: &[f64], train: i64) -> Result<Vec<f64>> {
    let timesteps: Vec<f64> = custom.iter().map(|t| t.trunc()).collect();
    if let Some(pair) = timesteps.windows(2).find(|pair| pair[1] >= pair[0]) {
        return Err(Error::Argument(format!(
            "custom timesteps have to be in descending order, and {} comes before {}",
            pair[0], pair[1]
        )));
    }
    match timesteps.first() {
        None => Err(Error::Argument("a run needs one timestep or more".into())),
        Some(first) if *first >= train as f64 => Err(Error::Argument(format!(
            "custom timesteps have to start before {train}, the number of the training's, and not at {first}"
        ))),
        Some(_) => Ok(timesteps),
    }
}

impl Scheduler for DDPMScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let options = &self.options;
        options.betas.check()?;
        let train = options.betas.num_train_timesteps;
        self.timesteps = match timesteps {
            Timesteps::Sigmas(_) => return Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => descending(custom, train)?,
            Timesteps::Steps(steps) => {
                at_most_trained(steps, train)?;
                let spaced = options.timestep_spacing.timesteps(train, steps, options.steps_offset)?;
                spaced.into_iter().map(f64::round_ties_even).collect()
            }
        };
        Ok(())
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let timestep = timestep as i64;
        let posterior = self.posterior(timestep)?;
        let (output, predicted_variance) = self.options.variance_type.split(model_output, sample)?;
        let (signal, noise) = (sqrt(posterior.alpha_prod_t)?, sqrt(1.0 - posterior.alpha_prod_t)?);
        let x0 = predicted_x0(self.options.prediction_type, &output, sample, signal, noise)?;
        let x0 = self.options.limit.apply(x0)?;
        let (of_x0, of_sample) = posterior.mean()?;
        let mut prev_sample = axpby(of_x0, &x0, of_sample, sample)?;
        if timestep > 0 {
            let noise = options.noise(&output, output.f_kind()?)?;
            let spread = self.options.variance_type.spread(&posterior, predicted_variance.as_ref(), &noise)?;
            prev_sample = sum(prev_sample, &spread)?;
        }
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        noised(&self.alphas_cumprod, original_samples, noise, timesteps)
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        velocity(&self.alphas_cumprod, sample, noise, timesteps)
    }
}
