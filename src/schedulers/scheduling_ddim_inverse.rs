//! DDIM backwards: from a picture to the noise that DDIM draws it from (arXiv:2010.02502, section 4.3).
//!
//! Mirrors `diffusers/schedulers/scheduling_ddim_inverse.py` at 0.42.1.

use super::arrays::sqrt;
use super::betas::BetaConfig;
use super::cursor::not_set;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured,
};
use super::settings::settle;
use super::spacing::TimestepSpacing;
use super::step_math::{axpby, predicted_epsilon, predicted_x0};
use super::variance_preserving::{alpha_at, at_most_trained, noised};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::NumberExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
struct Options {
    #[serde(flatten)]
    betas: BetaConfig,
    clip_sample: bool,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: PredictionType,
    clip_sample_range: f64,
    timestep_spacing: TimestepSpacing,
    rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            clip_sample: true,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }
}

/// Inverted DDIM: its timesteps go up, and each step adds the noise that the model sees.
#[derive(Debug)]
pub struct DDIMInverseScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    initial_alpha_cumprod: f32,
    num_inference_steps: usize,
    timesteps: Vec<f64>,
}

impl SchedulerMixin for DDIMInverseScheduler {
    const CLASS_NAME: &'static str = "DDIMInverseScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        // An older name of `set_alpha_to_one`, which comes before it.
        let older = config.get("set_alpha_to_zero").and_then(Value::as_bool);
        let (mut options, mut config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        if let Some(older) = older {
            options.set_alpha_to_one = older;
            config.insert("set_alpha_to_one".into(), older.into());
        }
        if options.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("DDIMInverseScheduler has no `prediction_type` `flow_prediction`".into()));
        }
        let alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        let initial_alpha_cumprod = if options.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        let (num_inference_steps, timesteps) = Default::default();
        Ok(Self { options, config, alphas_cumprod, initial_alpha_cumprod, num_inference_steps, timesteps })
    }
}

impl Scheduler for DDIMInverseScheduler {
    as_configured!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let steps = timesteps.steps(Self::CLASS_NAME)?;
        let options = &self.options;
        options.betas.check()?;
        let train = options.betas.num_train_timesteps;
        at_most_trained(steps, train)?;
        if options.timestep_spacing == TimestepSpacing::Linspace {
            return Err(Error::Config(
                "DDIMInverseScheduler has no `timestep_spacing` linspace: use leading or trailing".into(),
            ));
        }
        let mut timesteps = options.timestep_spacing.timesteps(train, steps, options.steps_offset)?;
        timesteps.reverse();
        (self.num_inference_steps, self.timesteps) = (steps, timesteps);
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
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        // The sample is at the timestep below the one that the model was asked about, and goes up to that.
        let above = timestep as i64;
        let train = self.options.betas.num_train_timesteps;
        let below = (above - train / self.num_inference_steps as i64).min(train - 1);
        let alpha_prod_t = if below >= 0 { alpha_at(&self.alphas_cumprod, below)? } else { self.initial_alpha_cumprod };
        let alpha_prod_t_prev = alpha_at(&self.alphas_cumprod, above)?;
        let (signal, noise) = (sqrt(alpha_prod_t)?, sqrt(1.0 - alpha_prod_t)?);
        let prediction_type = self.options.prediction_type;
        let mut x0 = predicted_x0(prediction_type, model_output, sample, signal, noise)?;
        let epsilon = predicted_epsilon(prediction_type, model_output, sample, signal, noise)?;
        if self.options.clip_sample {
            x0 = x0.clamped(-self.options.clip_sample_range, self.options.clip_sample_range)?;
        }
        let prev_sample = axpby(sqrt(alpha_prod_t_prev)?, &x0, sqrt(1.0 - alpha_prod_t_prev)?, &epsilon)?;
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }

    // Differs from diffusers: it has none here. The noising process is DDIM's.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        noised(&self.alphas_cumprod, original_samples, noise, timesteps)
    }
}
