//! Denoising diffusion implicit models (arXiv:2010.02502).
//!
//! Mirrors `diffusers/schedulers/scheduling_ddim.py` at 0.42.1.

use super::arrays::sqrt;
use super::betas::BetaConfig;
use super::cursor::{not_set, takes_no_custom};
use super::scheduling_utils::{PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{
    LimitOptions, PerSample, axpby, mix, predicted_epsilon, predicted_x0, remove_and_divide, scaled, sum,
};
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

/// alpha_bar at `timestep`.
pub(super) fn alpha_at(alphas_cumprod: &[f32], timestep: i64) -> Result<f32> {
    let alpha = usize::try_from(timestep).ok().and_then(|timestep| alphas_cumprod.get(timestep));
    alpha.copied().ok_or_else(|| {
        Error::Argument(format!("timestep {timestep} is not among the {} training timesteps", alphas_cumprod.len()))
    })
}

/// alpha_bar at each of `timesteps`, to be multiplied with `like`.
pub(super) fn alphas_at(alphas_cumprod: &[f32], timesteps: &[f64], like: &Tensor) -> Result<PerSample> {
    let alphas = timesteps.iter().map(|timestep| alpha_at(alphas_cumprod, *timestep as i64));
    PerSample::new(&alphas.collect::<Result<Vec<_>>>()?, like)
}

impl Scheduler for DDIMScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let steps = match timesteps {
            Timesteps::Steps(steps) => steps,
            Timesteps::Timesteps(_) => return Err(takes_no_custom(Self::CLASS_NAME, "timesteps")),
            Timesteps::Sigmas(_) => return Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
        };
        self.options.betas.check()?;
        let train = self.options.betas.num_train_timesteps;
        if steps as i64 > train {
            return Err(Error::Argument(format!(
                "`num_inference_steps` is {steps}, more than the {train} timesteps of the training"
            )));
        }
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

    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    fn scale_model_input(&mut self, sample: &Tensor, _timestep: f64) -> Result<Tensor> {
        Ok(sample.shallow_clone())
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
        let alphas = alphas_at(&self.alphas_cumprod, timesteps, original_samples)?;
        let (signal, sigma) = alphas.signal_and_noise()?;
        mix(&signal, original_samples, &sigma, noise)
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let (signal, sigma) = alphas_at(&self.alphas_cumprod, timesteps, sample)?.signal_and_noise()?;
        mix(&signal, noise, &sigma.f_neg()?, sample)
    }

    fn fresh(&self) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(Self::from_config(&self.config)?))
    }
}
