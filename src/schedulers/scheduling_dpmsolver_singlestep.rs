//! DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), singlestep, of order one to three.
//!
//! Mirrors `diffusers/schedulers/scheduling_dpmsolver_singlestep.py` at 0.42.1.

mod options;
mod updates;

use super::arrays::interp;
use super::betas::{log_sigmas, training_sigmas};
use super::cursor::{Cursor, not_set, takes_no_custom};
use super::half_log_snr::{Point, alpha_sigma_tensors, flow_sigmas, last_timestep};
use super::scheduling_dpmsolver_multistep::options::ALIASES;
use super::scheduling_dpmsolver_multistep::updates::{Algorithm, Step};
use super::scheduling_utils::{PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::{mark_as_set, settle};
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange};
use super::spacing::TimestepSpacing;
use super::step_math::{Thresholding, mix, predicted_epsilon};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use options::Options;
use tch::Tensor;
use updates::Update;

/// DPM-Solver++, or another algorithm of its family, in groups of steps that rise from order 1 to `solver_order`.
///
/// [`Scheduler::set_timesteps`] sets `lower_order_final` where the number of steps or the final noise level need it.
#[derive(Debug)]
pub struct DPMSolverSinglestepScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    points: Vec<Point>,
    orders: Vec<usize>,
    /// The last converted outputs of the model, newest last.
    model_outputs: Vec<Tensor>,
    /// The sample that the current group of steps began with.
    sample: Option<Tensor>,
    cursor: Cursor,
}

impl SchedulerMixin for DPMSolverSinglestepScheduler {
    const CLASS_NAME: &'static str = "DPMSolverSinglestepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let alphas_cumprod = options.betas.alphas_cumprod(false)?;
        Ok(Self {
            options,
            config,
            alphas_cumprod,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            points: Vec::new(),
            orders: Vec::new(),
            model_outputs: Vec::new(),
            sample: None,
            cursor: Cursor::default(),
        })
    }
}

impl DPMSolverSinglestepScheduler {
    fn custom_or_spaced(&self, timesteps: Timesteps<'_>) -> Result<Vec<f64>> {
        let options = &self.options;
        let custom = match timesteps {
            Timesteps::Sigmas(_) => return Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => custom,
            Timesteps::Steps(steps) => {
                let last = last_timestep(&self.alphas_cumprod, options.lambda_min_clipped)?;
                return TimestepSpacing::Linspace.solver_timesteps(options.betas.num_train_timesteps, last, steps, 0);
            }
        };
        match options.switches().iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(Error::Argument(format!("custom timesteps cannot be combined with `{name}`"))),
            None if custom.is_empty() => Err(Error::Argument("a run needs one timestep or more".into())),
            None => Ok(custom.iter().map(|t| t.trunc()).collect()),
        }
    }

    /// Timesteps, and their noise levels without the final one.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
        let options = &self.options;
        options.betas.check()?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let spaced = self.custom_or_spaced(timesteps)?;
        let steps = spaced.len();
        let range = SigmaRange::new(&self.config, f64::from(training[training.len() - 1]), f64::from(training[0]));
        let sigmas = if options.use_karras_sigmas {
            range.karras(steps)
        } else if options.use_exponential_sigmas {
            range.exponential(steps)
        } else if options.use_beta_sigmas {
            range.beta(steps)
        } else if options.use_flow_sigmas {
            return Ok(flow_sigmas(options.flow_shift, options.betas.num_train_timesteps, steps));
        } else {
            let sigmas = spaced.iter().map(|t| interp(*t, &training)).collect();
            return Ok((spaced, sigmas));
        };
        let logs = LogSigmas::Single(log_sigmas(&training));
        let timesteps = sigmas.iter().map(|sigma| {
            let timestep = logs.timestep(*sigma)?;
            Ok(if options.use_karras_sigmas { timestep.round_ties_even() } else { timestep.trunc() })
        });
        Ok((timesteps.collect::<Result<_>>()?, sigmas))
    }

    /// Ends on order 1 where whole groups cannot fill the run, or its last step has to be of order 1.
    fn lower_the_final_order(&mut self, steps: usize) {
        let uneven = !steps.is_multiple_of(self.options.solver_order);
        if !self.options.lower_order_final && (uneven || self.options.final_sigmas_type == FinalSigmasType::Zero) {
            tracing::debug!("DPMSolverSinglestepScheduler sets `lower_order_final` for {steps} steps");
            self.options.lower_order_final = true;
            mark_as_set(&mut self.config, "lower_order_final", true.into());
        }
    }

    /// The model's output as x_0, or as epsilon for the algorithm that integrates the noise.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let options = &self.options;
        let point = self.points[index];
        let learned = options.learns_variance() && options.prediction_type == PredictionType::Epsilon;
        let output = if learned { output.f_narrow(1, 0, 3)? } else { output.shallow_clone() };
        if !options.algorithm_type.predicts_x0() {
            return predicted_epsilon(options.prediction_type, &output, sample, point.alpha, point.sigma);
        }
        let x0 = point.x0(options.prediction_type, &output, sample, self.sigmas[index])?;
        if !options.thresholding {
            return Ok(x0);
        }
        Thresholding { ratio: options.dynamic_thresholding_ratio, max_value: options.sample_max_value }.apply(&x0)
    }
}

impl Scheduler for DPMSolverSinglestepScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let (timesteps, sigmas) = self.lay_out(timesteps)?;
        let final_sigma = match self.options.final_sigmas_type {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => training_sigmas(&self.alphas_cumprod)?[0],
        };
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).chain([final_sigma]).collect();
        self.points = Point::of(&sigmas, self.options.use_flow_sigmas)?;
        self.lower_the_final_order(timesteps.len());
        self.orders = self.options.orders(timesteps.len());
        (self.timesteps, self.sigmas) = (timesteps, sigmas);
        self.model_outputs.clear();
        self.sample = None;
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
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let index = self.cursor.locate(&self.timesteps, timestep)?;
        let output = self.convert_model_output(model_output, sample, index)?;
        let noise = match self.options.algorithm_type {
            Algorithm::SdeDPMSolverPlusPlus => Some(options.noise(&output, output.f_kind()?)?),
            _ => None,
        };
        if self.model_outputs.len() == self.options.solver_order {
            drop(self.model_outputs.remove(0));
        }
        self.model_outputs.push(output);
        // A run that starts in the middle of a group begins with order 1, as there are no outputs before.
        let order = self.orders[index].min(self.model_outputs.len());
        if order == 1 {
            self.sample = Some(sample.shallow_clone());
        }
        let points = &self.points[index + 1 - order..=index + 1];
        let whole = Step::new(self.options.algorithm_type, points[0], points[order])?;
        let update = Update { whole, points, solver_type: self.options.solver_type };
        let group = &self.model_outputs[self.model_outputs.len() - order..];
        let prev_sample = update.apply(self.sample.as_ref().unwrap_or(sample), group, noise.as_ref())?;
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
