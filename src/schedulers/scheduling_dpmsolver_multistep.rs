//! DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), multistep, of order one to three.
//!
//! Mirrors `diffusers/schedulers/scheduling_dpmsolver_multistep.py` at 0.42.1.

pub(super) mod options;
pub(super) mod updates;

use super::arrays::interp;
use super::betas::{BetaSchedule, keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::{Cursor, not_set, takes_no_custom};
use super::half_log_snr::{Point, alpha_sigma_tensors, flow_sigmas, last_timestep};
use super::scheduling_utils::{PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange, lu};
use super::step_math::{Thresholding, mix, predicted_epsilon, remove_and_divide};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::randn_tensor;
use options::{ALIASES, Options};
use tch::{Kind, Tensor};
use updates::Step;

/// DPM-Solver++, or another algorithm of its family, as `algorithm_type` says.
#[derive(Debug)]
pub struct DPMSolverMultistepScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    steps: Vec<Step>,
    points: Vec<Point>,
    /// The last converted outputs of the model, newest last.
    model_outputs: Vec<Tensor>,
    cursor: Cursor,
}

impl SchedulerMixin for DPMSolverMultistepScheduler {
    const CLASS_NAME: &'static str = "DPMSolverMultistepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let mut alphas_cumprod = options.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        Ok(Self {
            options,
            config,
            alphas_cumprod,
            timesteps: Vec::new(),
            sigmas: Vec::new(),
            steps: Vec::new(),
            points: Vec::new(),
            model_outputs: Vec::new(),
            cursor: Cursor::default(),
        })
    }
}

impl DPMSolverMultistepScheduler {
    fn custom_or_spaced(&self, timesteps: Timesteps<'_>) -> Result<Vec<f64>> {
        let options = &self.options;
        match timesteps {
            Timesteps::Sigmas(_) => Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => {
                let conflicts = [
                    ("use_karras_sigmas", options.use_karras_sigmas),
                    ("use_lu_lambdas", options.use_lu_lambdas),
                    ("use_exponential_sigmas", options.use_exponential_sigmas),
                    ("use_beta_sigmas", options.use_beta_sigmas),
                    ("use_flow_sigmas", options.use_flow_sigmas),
                ];
                match conflicts.iter().find(|(_, set)| *set) {
                    Some((name, _)) => {
                        Err(Error::Argument(format!("custom timesteps cannot be combined with `{name}`")))
                    }
                    None if custom.is_empty() => Err(Error::Argument("a run needs one timestep or more".into())),
                    None => Ok(custom.iter().map(|t| t.trunc()).collect()),
                }
            }
            Timesteps::Steps(steps) => options.timestep_spacing.solver_timesteps(
                options.betas.num_train_timesteps,
                last_timestep(&self.alphas_cumprod, options.lambda_min_clipped)?,
                steps,
                options.steps_offset,
            ),
        }
    }

    /// Timesteps, and their noise levels without the final one.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
        let options = &self.options;
        options.betas.check()?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let spaced = self.custom_or_spaced(timesteps)?;
        let steps = if let Timesteps::Steps(steps) = timesteps { steps } else { spaced.len() };
        let logs = log_sigmas(&training);
        let range = SigmaRange::new(&self.config, f64::from(training[training.len() - 1]), f64::from(training[0]));
        let sigmas = if options.use_karras_sigmas {
            range.karras(steps)
        } else if options.use_lu_lambdas {
            lu(f64::from(logs[logs.len() - 1]), f64::from(logs[0]), steps)
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
        let logs = LogSigmas::Single(logs);
        let rounds = options.set_lu_or_karras() && options.betas.beta_schedule != BetaSchedule::SquaredcosCapV2;
        let timesteps = sigmas.iter().map(|sigma| {
            let timestep = logs.timestep(*sigma)?;
            Ok(if rounds { timestep.round_ties_even() } else { timestep.trunc() })
        });
        Ok((timesteps.collect::<Result<_>>()?, sigmas))
    }

    /// The model's output as x_0, or as epsilon for the algorithms that integrate the noise.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let Point { alpha, sigma, .. } = self.points[index];
        let learned = self.options.learns_variance() && self.options.prediction_type == PredictionType::Epsilon;
        let output = if learned { output.f_narrow(1, 0, 3)? } else { output.shallow_clone() };
        let thresholding = self.options.thresholding.then_some(Thresholding {
            ratio: self.options.dynamic_thresholding_ratio,
            max_value: self.options.sample_max_value,
        });
        if self.options.algorithm_type.predicts_x0() {
            let x0 = self.points[index].x0(self.options.prediction_type, &output, sample, self.sigmas[index])?;
            return match thresholding {
                Some(thresholding) => thresholding.apply(&x0),
                None => Ok(x0),
            };
        }
        let epsilon = predicted_epsilon(self.options.prediction_type, &output, sample, alpha, sigma)?;
        match thresholding {
            None => Ok(epsilon),
            Some(thresholding) => {
                let x0 = thresholding.apply(&remove_and_divide(sample, sigma, &epsilon, alpha)?)?;
                remove_and_divide(sample, alpha, &x0, sigma)
            }
        }
    }

    /// The order of the step at `index`: lower where outputs are still missing, and at the end.
    fn order(&self, index: usize) -> usize {
        let options = &self.options;
        let left = self.timesteps.len() - index;
        let short = options.lower_order_final && self.timesteps.len() < 15;
        let at_final = match left {
            1 if options.euler_at_final || short || options.final_sigmas_type == FinalSigmasType::Zero => 1,
            2 if short => 2,
            _ => options.solver_order,
        };
        options.solver_order.min(self.model_outputs.len()).min(at_final)
    }
}

impl Scheduler for DPMSolverMultistepScheduler {
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
        let points = Point::of(&sigmas, self.options.use_flow_sigmas)?;
        self.steps = points
            .windows(2)
            .map(|pair| Step::new(self.options.algorithm_type, pair[0], pair[1]))
            .collect::<Result<_>>()?;
        (self.timesteps, self.sigmas, self.points) = (timesteps, sigmas, points);
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
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        if self.timesteps.is_empty() {
            return Err(not_set(Self::CLASS_NAME));
        }
        let index = self.cursor.locate(&self.timesteps, timestep)?;
        let output = self.convert_model_output(model_output, sample, index)?;
        let kind = output.f_kind()?;
        if self.model_outputs.len() == self.options.solver_order {
            drop(self.model_outputs.remove(0));
        }
        let noise = match options.variance_noise {
            _ if !self.options.algorithm_type.is_sde() => None,
            Some(noise) => Some(noise.f_to_device(output.device())?.f_to_kind(Kind::Float)?),
            None => Some(randn_tensor(&output.size(), options.generators, Kind::Float, output.device())?),
        };
        self.model_outputs.push(output);
        let sample = sample.f_to_kind(Kind::Float)?;
        let order = self.order(index);
        let update = self.steps[index].update(&self.steps[..index], self.options.solver_type, order);
        let prev_sample = update.apply(&sample, &self.model_outputs, noise.as_ref())?.f_to_kind(kind)?;
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
