//! Denoising diffusion implicit models (arXiv:2010.02502).
//!
//! Mirrors `diffusers/schedulers/scheduling_ddim.py` at 0.42.1.

use super::arrays::sqrt;
use super::betas::BetaConfig;
use super::cursor::not_set;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{LimitOptions, axpby, predicted_epsilon, predicted_x0, remove_and_divide, scaled, sum};
use super::variance_preserving::{alpha_at, at_most_trained, noised, velocity};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::randn_tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    #[serde(flatten)]
    limit: LimitOptions,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
    rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            limit: LimitOptions::default(),
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }
}

/// DDIM: a deterministic walk, or with [`StepOptions::eta`] anything up to DDPM's random one.
#[derive(Debug)]
pub struct DDIMScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
    num_inference_steps: usize,
    timesteps: Vec<f64>,
    /// The transfers of the run, by their timestep.
    transfers: BTreeMap<i64, Transfer>,
}

/// The coefficients between a timestep and the one before, without random noise.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    sqrt_alpha_prod_t: f32,
    sqrt_beta_prod_t: f32,
    sqrt_alpha_prod_t_prev: f32,
    beta_prod_t_prev: f32,
    sqrt_beta_prod_t_prev: f32,
    /// sigma_t where eta is 1 (equation 16).
    deviation: f32,
}

impl SchedulerMixin for DDIMScheduler {
    const CLASS_NAME: &'static str = "DDIMScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("DDIMScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        let alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        let final_alpha_cumprod = if options.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self {
            options,
            config,
            alphas_cumprod,
            final_alpha_cumprod,
            num_inference_steps: 0,
            timesteps: Vec::new(),
            transfers: BTreeMap::new(),
        })
    }
}

impl DDIMScheduler {
    fn alpha_prod(&self, timestep: i64) -> Result<f32> {
        alpha_at(&self.alphas_cumprod, timestep)
    }

    fn transfer(&self, timestep: i64) -> Result<Transfer> {
        let prev_timestep = timestep - self.options.betas.num_train_timesteps / self.num_inference_steps as i64;
        let alpha_prod_t = self.alpha_prod(timestep)?;
        let alpha_prod_t_prev =
            if prev_timestep >= 0 { self.alpha_prod(prev_timestep)? } else { self.final_alpha_cumprod };
        let (beta_prod_t, beta_prod_t_prev) = (1.0 - alpha_prod_t, 1.0 - alpha_prod_t_prev);
        Ok(Transfer {
            sqrt_alpha_prod_t: sqrt(alpha_prod_t)?,
            sqrt_beta_prod_t: sqrt(beta_prod_t)?,
            sqrt_alpha_prod_t_prev: sqrt(alpha_prod_t_prev)?,
            beta_prod_t_prev,
            sqrt_beta_prod_t_prev: sqrt(beta_prod_t_prev)?,
            deviation: sqrt((beta_prod_t_prev / beta_prod_t) * (1.0 - alpha_prod_t / alpha_prod_t_prev))?,
        })
    }
}

impl Scheduler for DDIMScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let steps = timesteps.steps(Self::CLASS_NAME)?;
        self.options.betas.check()?;
        let train = self.options.betas.num_train_timesteps;
        at_most_trained(steps, train)?;
        let timesteps = self.options.timestep_spacing.timesteps(train, steps, self.options.steps_offset)?;
        self.num_inference_steps = steps;
        self.timesteps = timesteps.into_iter().map(f64::round_ties_even).collect();
        let transfers = self.timesteps.iter().map(|timestep| Ok((*timestep as i64, self.transfer(*timestep as i64)?)));
        self.transfers = transfers.collect::<Result<_>>()?;
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
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let timestep = timestep as i64;
        let transfer = match self.transfers.get(&timestep) {
            Some(transfer) => *transfer,
            None => self.transfer(timestep)?,
        };
        // Equation 12: x_0 as predicted, the direction that points to x_t, and random noise.
        let (signal, noise) = (transfer.sqrt_alpha_prod_t, transfer.sqrt_beta_prod_t);
        let prediction_type = self.options.prediction_type;
        let x0 = self.options.limit.apply(predicted_x0(prediction_type, model_output, sample, signal, noise)?)?;
        let mut epsilon = predicted_epsilon(prediction_type, model_output, sample, signal, noise)?;
        let std_dev_t = options.eta as f32 * transfer.deviation;
        if options.use_clipped_model_output {
            epsilon = remove_and_divide(sample, signal, &x0, noise)?;
        }
        let direction = match std_dev_t {
            0.0 => transfer.sqrt_beta_prod_t_prev,
            _ => sqrt(transfer.beta_prod_t_prev - std_dev_t * std_dev_t)?,
        };
        let mut prev_sample = axpby(transfer.sqrt_alpha_prod_t_prev, &x0, direction, &epsilon)?;
        if options.eta > 0.0 {
            let noise = match options.variance_noise {
                Some(_) if !options.generators.is_empty() => {
                    return Err(Error::Argument("`variance_noise` was given, and generators too: give one".into()));
                }
                Some(noise) => noise.shallow_clone(),
                None => {
                    let (kind, device) = (model_output.f_kind()?, model_output.device());
                    randn_tensor(&model_output.size(), options.generators, kind, device)?
                }
            };
            prev_sample = sum(prev_sample, &scaled(std_dev_t, &noise)?)?;
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
