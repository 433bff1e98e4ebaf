//! UniPC: a unified predictor-corrector of any order (arXiv:2302.04867).
//!
//! Mirrors `diffusers/schedulers/scheduling_unipc_multistep.py` at 0.42.1.

mod options;
mod updates;

use super::arrays::{interp, linspace};
use super::betas::{keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::{Cursor, not_set, takes_no_custom};
use super::half_log_snr::{Point, alpha_sigma_tensors};
use super::scheduling_utils::{Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange};
use super::step_math::{Thresholding, mix, predicted_epsilon};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use options::{ALIASES, Options, TimeShiftType};
use tch::Tensor;
use updates::{Prediction, Step, Weights};

/// UniPC: each call of the model first corrects the last step, then predicts the next one.
#[derive(Debug)]
pub struct UniPCMultistepScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    points: Vec<Point>,
    steps: Vec<Step>,
    /// The weights that each step has in a run from its beginning.
    weights: Vec<Weights>,
    /// The last converted outputs of the model, newest last.
    model_outputs: Vec<Tensor>,
    /// The last step, for the corrector.
    last: Option<Prediction>,
    cursor: Cursor,
}

impl SchedulerMixin for UniPCMultistepScheduler {
    const CLASS_NAME: &'static str = "UniPCMultistepScheduler";

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
            points: Vec::new(),
            steps: Vec::new(),
            weights: Vec::new(),
            model_outputs: Vec::new(),
            last: None,
            cursor: Cursor::default(),
        })
    }
}

/// The noise levels of a run before the last, their timesteps, and the last one if it is not sigma 0.
struct Layout {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    lowest: f64,
}

impl UniPCMultistepScheduler {
    fn lay_out(&self, timesteps: Timesteps<'_>, mu: Option<f64>) -> Result<Layout> {
        let options = &self.options;
        options.betas.check()?;
        let (steps, custom) = match timesteps {
            Timesteps::Steps(steps) => (steps, None),
            Timesteps::Timesteps(_) => return Err(takes_no_custom(Self::CLASS_NAME, "timesteps")),
            Timesteps::Sigmas(_) if !options.use_flow_sigmas => {
                return Err(Error::Argument("custom sigmas need `use_flow_sigmas`".into()));
            }
            Timesteps::Sigmas([]) => return Err(Error::Argument("a run needs one sigma or more".into())),
            Timesteps::Sigmas(sigmas) => (sigmas.len(), Some(sigmas)),
        };
        if options.use_dynamic_shifting && mu.is_none() {
            return Err(Error::Argument("`use_dynamic_shifting` is set, so `set_timesteps` needs `mu`".into()));
        }
        let train = options.betas.num_train_timesteps;
        let spaced = options.timestep_spacing.solver_timesteps(train, train, steps, options.steps_offset)?;
        if options.use_karras_sigmas || options.use_exponential_sigmas || options.use_beta_sigmas {
            return self.converted(steps, custom);
        }
        if options.use_flow_sigmas {
            return Ok(self.flow(steps, custom, mu));
        }
        let training = training_sigmas(&self.alphas_cumprod)?;
        let sigmas = spaced.iter().map(|t| interp(*t, &training)).collect();
        Ok(Layout { timesteps: spaced, sigmas, lowest: f64::from(training[0]) })
    }

    /// Karras's, exponential or beta levels between the ends of the training's (or of the custom) ones.
    fn converted(&self, steps: usize, custom: Option<&[f64]>) -> Result<Layout> {
        let options = &self.options;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let (logs, first, last) = match custom {
            // diffusers takes them to run upwards, as the training's do.
            Some(custom) => {
                let logs = LogSigmas::Double(custom.iter().map(|sigma| sigma.ln()).collect());
                (logs, custom[custom.len() - 1], custom[0])
            }
            None => {
                let logs = LogSigmas::Single(log_sigmas(&training));
                (logs, f64::from(training[training.len() - 1]), f64::from(training[0]))
            }
        };
        let range = SigmaRange::new(&self.config, first, last);
        let mut sigmas = if options.use_karras_sigmas {
            range.karras(steps)
        } else if options.use_exponential_sigmas {
            range.exponential(steps)
        } else {
            range.beta(steps)
        };
        let timesteps: Vec<f64> = if options.use_karras_sigmas && options.use_flow_sigmas {
            sigmas.iter_mut().for_each(|sigma| *sigma /= *sigma + 1.0);
            sigmas.iter().map(|sigma| sigma * options.betas.num_train_timesteps as f64).collect()
        } else {
            let found = sigmas.iter().map(|sigma| logs.timestep(*sigma)).collect::<Result<Vec<_>>>()?;
            if options.use_karras_sigmas { found.into_iter().map(f64::round_ties_even).collect() } else { found }
        };
        Ok(Layout { timesteps, lowest: sigmas[sigmas.len() - 1], sigmas })
    }

    /// The levels of a flow, shifted by `flow_shift` or `mu`, and stretched to end at `shift_terminal`.
    fn flow(&self, steps: usize, custom: Option<&[f64]>, mu: Option<f64>) -> Layout {
        const EPSILON: f64 = 1e-6;
        let options = &self.options;
        let train = options.betas.num_train_timesteps as f64;
        let mut sigmas = custom.map_or_else(|| linspace(1.0, 1.0 / train, steps + 1), <[f64]>::to_vec);
        sigmas.truncate(steps);
        let shift = options.flow_shift;
        for sigma in &mut sigmas {
            *sigma = match (mu, options.time_shift_type) {
                (Some(mu), TimeShiftType::Exponential) => mu.exp() / (mu.exp() + (1.0 / *sigma - 1.0)),
                (Some(mu), TimeShiftType::Linear) => mu / (mu + (1.0 / *sigma - 1.0)),
                (None, _) => shift * *sigma / (1.0 + (shift - 1.0) * *sigma),
            };
        }
        if let Some(terminal) = options.shift_terminal.filter(|terminal| *terminal != 0.0) {
            let scale = (1.0 - sigmas[sigmas.len() - 1]) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
        // At sigma 1 there is no signal, and lambda is infinite.
        if (sigmas[0] - 1.0).abs() < EPSILON {
            sigmas[0] -= EPSILON;
        }
        let timesteps = sigmas.iter().map(|sigma| sigma * train).collect();
        Layout { timesteps, lowest: sigmas[sigmas.len() - 1], sigmas }
    }

    fn start(&mut self, timesteps: Timesteps<'_>, mu: Option<f64>) -> Result<()> {
        let Layout { timesteps, sigmas, lowest } = self.lay_out(timesteps, mu)?;
        let options = &self.options;
        let final_sigma = if options.final_sigmas_type == FinalSigmasType::Zero { 0.0 } else { lowest };
        let sigmas: Vec<f32> = sigmas.into_iter().chain([final_sigma]).map(|sigma| sigma as f32).collect();
        let points = Point::of(&sigmas, options.use_flow_sigmas)?;
        let pairs = points.windows(2);
        let steps: Vec<Step> =
            pairs.map(|pair| Step::new(options.predict_x0, pair[0], pair[1])).collect::<Result<_>>()?;
        self.timesteps = timesteps.into_iter().map(f64::trunc).collect();
        (self.sigmas, self.points, self.steps) = (sigmas, points, steps);
        let weights = (0..self.steps.len()).map(|index| self.weights(index, self.order(index, index + 1)));
        self.weights = weights.collect::<Result<_>>()?;
        self.model_outputs.clear();
        self.last = None;
        self.cursor = Cursor::default();
        Ok(())
    }

    /// The order of the step at `index` when so many outputs of the model are known.
    fn order(&self, index: usize, known: usize) -> usize {
        let options = &self.options;
        let left = if options.lower_order_final { self.timesteps.len() - index } else { options.solver_order };
        options.solver_order.min(left).min(known)
    }

    fn weights(&self, index: usize, order: usize) -> Result<Weights> {
        let corrected = index + 1 < self.steps.len() && !self.options.disable_corrector.contains(&index);
        self.steps[index].weights(&self.points[..index], self.options.solver_type, order, corrected)
    }

    /// The model's output as x_0, or as epsilon without `predict_x0`.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let options = &self.options;
        let Point { alpha, sigma, .. } = self.points[index];
        if !options.predict_x0 {
            return predicted_epsilon(options.prediction_type, output, sample, alpha, sigma);
        }
        let x0 = self.points[index].x0(options.prediction_type, output, sample, self.sigmas[index])?;
        if !options.thresholding {
            return Ok(x0);
        }
        Thresholding { ratio: options.dynamic_thresholding_ratio, max_value: options.sample_max_value }.apply(&x0)
    }
}

impl Scheduler for UniPCMultistepScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.start(timesteps, None)
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        self.start(timesteps, self.options.use_dynamic_shifting.then_some(mu))
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
        let sample = match self.last.take() {
            Some(last) if !self.options.disable_corrector.contains(&(index - 1)) => last.correct(&output)?,
            _ => sample.shallow_clone(),
        };
        if self.model_outputs.len() == self.options.solver_order {
            drop(self.model_outputs.remove(0));
        }
        self.model_outputs.push(output);

        let order = self.order(index, self.model_outputs.len());
        let planned = &self.weights[index];
        let weights = if planned.order() == order { planned.clone() } else { self.weights(index, order)? };
        let prediction = Prediction::new(weights, &sample, &self.model_outputs)?;
        let prev_sample = prediction.predict()?;
        self.last = Some(prediction);
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
