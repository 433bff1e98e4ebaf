//! DEIS: the diffusion exponential integrator, multistep, with polynomials in log(rho) (arXiv:2204.13902).
//!
//! Mirrors `diffusers/schedulers/scheduling_deis_multistep.py` at 0.42.1.

mod options;
mod updates;

use super::arrays::interp;
use super::betas::{log_sigmas, training_sigmas};
use super::cursor::{Cursor, not_set, takes_no_custom};
use super::half_log_snr::{Point, alpha_sigma_tensors, flow_sigmas};
use super::scheduling_utils::{PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::sigmas::{LogSigmas, SigmaRange};
use super::step_math::{Thresholding, mix, remove_and_divide};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use options::{ALIASES, Options};
use tch::Tensor;

/// DEIS, of order one to three: integrates the noise that the model predicts.
#[derive(Debug)]
pub struct DEISMultistepScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    points: Vec<Point>,
    /// The last predictions of the noise, newest last.
    model_outputs: Vec<Tensor>,
    cursor: Cursor,
}

impl SchedulerMixin for DEISMultistepScheduler {
    const CLASS_NAME: &'static str = "DEISMultistepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let alphas_cumprod = options.betas.alphas_cumprod(false)?;
        let (timesteps, sigmas, points, model_outputs, cursor) = Default::default();
        Ok(Self { options, config, alphas_cumprod, timesteps, sigmas, points, model_outputs, cursor })
    }
}

impl DEISMultistepScheduler {
    /// Timesteps, and their noise levels with the final one, which is never 0.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
        let options = &self.options;
        options.betas.check()?;
        let steps = match timesteps {
            Timesteps::Steps(steps) => steps,
            Timesteps::Timesteps(_) => return Err(takes_no_custom(Self::CLASS_NAME, "timesteps")),
            Timesteps::Sigmas(_) => return Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
        };
        let train = options.betas.num_train_timesteps;
        let spaced = options.timestep_spacing.solver_timesteps(train, train, steps, options.steps_offset)?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let range = SigmaRange::new(&self.config, f64::from(training[training.len() - 1]), f64::from(training[0]));
        let sigmas = if options.use_karras_sigmas {
            range.karras(steps)
        } else if options.use_exponential_sigmas {
            range.exponential(steps)
        } else if options.use_beta_sigmas {
            range.beta(steps)
        } else if options.use_flow_sigmas {
            let (timesteps, sigmas) = flow_sigmas(options.flow_shift, train, steps);
            return Ok((timesteps, last_twice(sigmas)));
        } else {
            let sigmas = spaced.iter().map(|t| interp(*t, &training)).chain([f64::from(training[0])]).collect();
            return Ok((spaced, sigmas));
        };
        let logs = LogSigmas::Single(log_sigmas(&training));
        let timesteps = sigmas.iter().map(|sigma| {
            let timestep = logs.timestep(*sigma)?;
            Ok(if options.use_karras_sigmas { timestep.round_ties_even() } else { timestep.trunc() })
        });
        Ok((timesteps.collect::<Result<_>>()?, last_twice(sigmas)))
    }

    /// The model's output as epsilon, by way of x_0.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let options = &self.options;
        let point = self.points[index];
        let mut x0 = point.x0(options.prediction_type, output, sample, self.sigmas[index])?;
        if options.thresholding {
            let (ratio, max_value) = (options.dynamic_thresholding_ratio, options.sample_max_value);
            x0 = Thresholding { ratio, max_value }.apply(&x0)?;
        }
        let flows = options.prediction_type == PredictionType::FlowPrediction;
        let sigma = if flows { self.sigmas[index] } else { point.sigma };
        remove_and_divide(sample, point.alpha, &x0, sigma)
    }

    /// The order of the step at `index`: lower where outputs are still missing, and at the end of a short run.
    fn order(&self, index: usize) -> usize {
        let left = self.timesteps.len() - index;
        let short = self.options.lower_order_final && self.timesteps.len() < 15;
        let at_final = if short { left } else { self.options.solver_order };
        self.options.solver_order.min(self.model_outputs.len()).min(at_final)
    }
}

fn last_twice(mut sigmas: Vec<f64>) -> Vec<f64> {
    sigmas.extend(sigmas.last().copied());
    sigmas
}

impl Scheduler for DEISMultistepScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let (timesteps, sigmas) = self.lay_out(timesteps)?;
        self.sigmas = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        self.points = Point::of(&self.sigmas, self.options.use_flow_sigmas)?;
        self.timesteps = timesteps;
        self.model_outputs.clear();
        self.cursor = Cursor::default();
        Ok(())
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        if !self.options.use_dynamic_shifting || self.options.time_shift_type != "exponential" {
            return Err(Error::Argument(
                "`mu` needs `use_dynamic_shifting`, and exponential as `time_shift_type`".into(),
            ));
        }
        self.options.flow_shift = mu.exp();
        self.set_timesteps(timesteps)
    }

    fn set_begin_index(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigmas(&self) -> &[f32] {
        &self.sigmas
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
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let index = self.cursor.locate(&self.timesteps, timestep)?;
        let output = self.convert_model_output(model_output, sample, index)?;
        if self.model_outputs.len() == self.options.solver_order {
            drop(self.model_outputs.remove(0));
        }
        self.model_outputs.push(output);
        let order = self.order(index);
        let points = &self.points[index + 1 - order..=index + 1];
        let outputs = &self.model_outputs[self.model_outputs.len() - order..];
        let prev_sample = updates::update(sample, points, outputs)?;
        self.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        // Differs from diffusers: before `set_timesteps` its table of sigmas runs upwards, its timesteps downwards.
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let steps = self.cursor.noise_indices(&self.timesteps, timesteps)?;
        let sigmas: Vec<f32> = steps.into_iter().map(|step| self.sigmas[step]).collect();
        let (alpha, sigma) = alpha_sigma_tensors(&sigmas, original_samples, self.options.use_flow_sigmas)?;
        mix(&alpha, original_samples, &sigma, noise)
    }

    fn fresh(&self) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(Self::from_config(&self.config)?))
    }
}
