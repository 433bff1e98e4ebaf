//! Multistep sampling of latent consistency models (arXiv:2310.04378).
//!
//! Mirrors `diffusers/schedulers/scheduling_lcm.py` at 0.42.1.

use super::arrays::sqrt;
use super::betas::{BetaConfig, BetaSchedule};
use super::cursor::{Cursor, not_set, takes_no_custom};
use super::scheduling_ddpm::descending;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{LimitOptions, axpby, predicted_x0};
use super::variance_preserving::{alpha_at, noised, velocity};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    original_inference_steps: i64,
    #[serde(flatten)]
    limit: LimitOptions,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: PredictionType,
    /// diffusers has the option and never reads it.
    timestep_spacing: TimestepSpacing,
    timestep_scaling: f64,
    rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        let ends = BetaConfig { beta_start: 0.00085, beta_end: 0.012, ..BetaConfig::default() };
        Self {
            betas: BetaConfig { beta_schedule: BetaSchedule::ScaledLinear, ..ends },
            original_inference_steps: 50,
            limit: LimitOptions { clip_sample: false, ..LimitOptions::default() },
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            timestep_scaling: 10.0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// LCM: each step jumps to the noise-free sample, and all but the last add fresh noise to it.
///
/// The model has to be a latent consistency model, or have the weights of a latent consistency LoRA.
#[derive(Debug)]
pub struct LCMScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
    num_inference_steps: usize,
    timesteps: Vec<f64>,
    cursor: Cursor,
}

impl SchedulerMixin for LCMScheduler {
    const CLASS_NAME: &'static str = "LCMScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("LCMScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        let alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        let final_alpha_cumprod = if options.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        let (num_inference_steps, timesteps, cursor) = Default::default();
        Ok(Self { options, config, alphas_cumprod, final_alpha_cumprod, num_inference_steps, timesteps, cursor })
    }
}

impl LCMScheduler {
    /// Lays out a run over the timesteps that the model was distilled with.
    ///
    /// `original_inference_steps` is their number, that of the configuration if none is given. `strength`, above 0 and
    /// up to 1, is the share of them that is walked, the less noisy ones, as pipelines from picture to picture want it.
    ///
    /// # Errors
    /// As [`Scheduler::set_timesteps`].
    pub fn set_timesteps_of(
        &mut self,
        timesteps: Timesteps<'_>,
        original_inference_steps: Option<i64>,
        strength: f64,
    ) -> Result<()> {
        self.options.betas.check()?;
        let train = self.options.betas.num_train_timesteps;
        let original = original_inference_steps.unwrap_or(self.options.original_inference_steps);
        if !(1..=train).contains(&original) {
            return Err(Error::Argument(format!(
                "`original_inference_steps` is {original}, not between 1 and the {train} timesteps of the training"
            )));
        }
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::Argument(format!("`strength` is {strength}, not above 0 and up to 1")));
        }
        (self.num_inference_steps, self.timesteps) = match timesteps {
            Timesteps::Sigmas(_) => return Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => {
                let custom = descending(custom, train)?;
                let walked = (custom.len() as f64 * strength) as usize;
                if walked == 0 {
                    return Err(Error::Argument(format!(
                        "the share {strength} of {} timesteps leaves none of them",
                        custom.len()
                    )));
                }
                (custom.len(), custom[custom.len() - walked..].to_vec())
            }
            Timesteps::Steps(steps) => (steps, spaced(train, original, strength, steps)?),
        };
        self.cursor = Cursor::default();
        Ok(())
    }

    /// c_skip and c_out: at timestep 0 the consistency function is the identity (appendix C of the paper).
    fn boundary_scalings(&self, timestep: i64) -> Result<(f32, f32)> {
        const SIGMA_DATA_SQUARED: f32 = 0.25;
        let scaled_timestep = timestep as f32 * self.options.timestep_scaling as f32;
        let sum = scaled_timestep * scaled_timestep + SIGMA_DATA_SQUARED;
        // A number by a tensor is its reciprocal times the number.
        Ok((1.0 / sum * SIGMA_DATA_SQUARED, scaled_timestep / sqrt(sum)?))
    }
}

/// `steps` timesteps, about evenly spaced over those of the distillation.
fn spaced(train: i64, original: i64, strength: f64, steps: usize) -> Result<Vec<f64>> {
    let skip = train / original;
    let walked = (original as f64 * strength) as usize;
    let mut distilled: Vec<f64> = (1..=walked as i64).map(|i| (i * skip - 1) as f64).collect();
    distilled.reverse();
    if steps == 0 || steps > walked {
        return Err(Error::Argument(format!(
            "`num_inference_steps` is {steps}, not between 1 and {walked}, the share {strength} of the {original} \
             timesteps that the model was distilled with"
        )));
    }
    let stride = walked as f64 / steps as f64;
    Ok((0..steps).map(|i| distilled[(i as f64 * stride).floor() as usize]).collect())
}

impl Scheduler for LCMScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.set_timesteps_of(timesteps, None, 1.0)
    }

    fn set_begin_index(&mut self, index: usize) {
        self.cursor.begin_at(index);
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
        let index = self.cursor.locate(&self.timesteps, timestep)?;
        let timestep = timestep as i64;
        let prev_timestep = self.timesteps.get(index + 1).map_or(timestep, |t| *t as i64);
        let alpha_prod_t = alpha_at(&self.alphas_cumprod, timestep)?;
        let (signal, noise) = (sqrt(alpha_prod_t)?, sqrt(1.0 - alpha_prod_t)?);
        let x0 = predicted_x0(self.options.prediction_type, model_output, sample, signal, noise)?;
        let x0 = self.options.limit.apply(x0)?;
        let (c_skip, c_out) = self.boundary_scalings(timestep)?;
        let denoised = axpby(c_out, &x0, c_skip, sample)?;
        let prev_sample = if index + 1 == self.num_inference_steps {
            denoised.shallow_clone()
        } else {
            let alpha_prod_t_prev = match prev_timestep {
                0.. => alpha_at(&self.alphas_cumprod, prev_timestep)?,
                _ => self.final_alpha_cumprod,
            };
            let noise = options.noise(model_output, denoised.f_kind()?)?;
            axpby(sqrt(alpha_prod_t_prev)?, &denoised, sqrt(1.0 - alpha_prod_t_prev)?, &noise)?
        };
        self.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(denoised) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        noised(&self.alphas_cumprod, original_samples, noise, timesteps)
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        velocity(&self.alphas_cumprod, sample, noise, timesteps)
    }
}
