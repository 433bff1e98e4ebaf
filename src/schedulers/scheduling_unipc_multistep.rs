//! UniPC: a unified predictor-corrector of any order (arXiv:2302.04867).
//!
//! Mirrors `diffusers/schedulers/scheduling_unipc_multistep.py` at 0.42.1.

mod options;
mod updates;

use super::arrays::{interp, linspace};
use super::betas::{keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::takes_no_custom;
use super::half_log_snr::Point;
use super::scheduling_utils::{
    Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, LogSigmas, SigmaRange};
use super::solver_run::{SolverRun, training_range};
use super::step_math::predicted_epsilon;
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
    run: SolverRun,
    steps: Vec<Step>,
    /// The weights that each step has in a run from its beginning.
    weights: Vec<Weights>,
    /// The last step, for the corrector.
    last: Option<Prediction>,
}

impl SchedulerMixin for UniPCMultistepScheduler {
    const CLASS_NAME: &'static str = "UniPCMultistepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let mut alphas_cumprod = options.solver.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        let run = SolverRun::new(Self::CLASS_NAME);
        Ok(Self { options, config, alphas_cumprod, run, steps: Vec::new(), weights: Vec::new(), last: None })
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
        let (options, solver) = (&self.options, &self.options.solver);
        solver.betas.check()?;
        let (steps, custom) = match timesteps {
            Timesteps::Steps(steps) => (steps, None),
            Timesteps::Timesteps(_) => return Err(takes_no_custom(Self::CLASS_NAME, "timesteps")),
            Timesteps::Sigmas(_) if !solver.use_flow_sigmas => {
                return Err(Error::Argument("custom sigmas need `use_flow_sigmas`".into()));
            }
            Timesteps::Sigmas([]) => return Err(Error::Argument("a run needs one sigma or more".into())),
            Timesteps::Sigmas(sigmas) => (sigmas.len(), Some(sigmas)),
        };
        if solver.use_dynamic_shifting && mu.is_none() {
            return Err(Error::Argument("`use_dynamic_shifting` is set, so `set_timesteps` needs `mu`".into()));
        }
        let train = solver.betas.num_train_timesteps;
        let spaced = options.timestep_spacing.solver_timesteps(train, train, steps, options.steps_offset)?;
        if let Some(converted) = self.converted(steps, custom)? {
            return Ok(converted);
        }
        if solver.use_flow_sigmas {
            return Ok(self.flow(steps, custom, mu));
        }
        let training = training_sigmas(&self.alphas_cumprod)?;
        let sigmas = spaced.iter().map(|t| interp(*t, &training)).collect();
        Ok(Layout { timesteps: spaced, sigmas, lowest: f64::from(training[0]) })
    }

    /// Karras's, exponential or beta levels, if asked for, between the ends of the training's (or of the custom) ones.
    fn converted(&self, steps: usize, custom: Option<&[f64]>) -> Result<Option<Layout>> {
        let solver = &self.options.solver;
        let (logs, range) = match custom {
            // diffusers takes them to run upwards, as the training's do.
            Some(custom) => {
                let logs = LogSigmas::Double(custom.iter().map(|sigma| sigma.ln()).collect());
                (logs, SigmaRange::new(&self.config, custom[custom.len() - 1], custom[0]))
            }
            None => {
                let training = training_sigmas(&self.alphas_cumprod)?;
                (LogSigmas::Single(log_sigmas(&training)), training_range(&self.config, &training))
            }
        };
        let Some(mut sigmas) = solver.switches.levels(range, steps) else { return Ok(None) };
        let use_karras_sigmas = solver.switches.use_karras_sigmas;
        let timesteps: Vec<f64> = if use_karras_sigmas && solver.use_flow_sigmas {
            sigmas.iter_mut().for_each(|sigma| *sigma /= *sigma + 1.0);
            sigmas.iter().map(|sigma| sigma * solver.betas.num_train_timesteps as f64).collect()
        } else {
            let found = sigmas.iter().map(|sigma| logs.timestep(*sigma)).collect::<Result<Vec<_>>>()?;
            if use_karras_sigmas { found.into_iter().map(f64::round_ties_even).collect() } else { found }
        };
        Ok(Some(Layout { timesteps, lowest: sigmas[sigmas.len() - 1], sigmas }))
    }

    /// The levels of a flow, shifted by `flow_shift` or `mu`, and stretched to end at `shift_terminal`.
    fn flow(&self, steps: usize, custom: Option<&[f64]>, mu: Option<f64>) -> Layout {
        const EPSILON: f64 = 1e-6;
        let (options, solver) = (&self.options, &self.options.solver);
        let train = solver.betas.num_train_timesteps as f64;
        let mut sigmas = custom.map_or_else(|| linspace(1.0, 1.0 / train, steps + 1), <[f64]>::to_vec);
        sigmas.truncate(steps);
        let shift = solver.flow_shift;
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
        let Layout { timesteps, mut sigmas, lowest } = self.lay_out(timesteps, mu)?;
        let options = &self.options;
        sigmas.push(if options.final_sigmas_type == FinalSigmasType::Zero { 0.0 } else { lowest });
        let timesteps = timesteps.into_iter().map(f64::trunc).collect();
        self.run.start(timesteps, sigmas, options.solver.use_flow_sigmas)?;
        let pairs = self.run.points().windows(2);
        self.steps = pairs.map(|pair| Step::new(options.predict_x0, pair[0], pair[1])).collect::<Result<_>>()?;
        let weights = (0..self.steps.len()).map(|index| self.weights(index, self.order(index, index + 1)));
        self.weights = weights.collect::<Result<_>>()?;
        self.last = None;
        Ok(())
    }

    /// The order of the step at `index` when so many outputs of the model are known.
    fn order(&self, index: usize, known: usize) -> usize {
        let solver_order = self.options.solver.solver_order;
        let left = if self.options.lower_order_final { self.steps.len() - index } else { solver_order };
        solver_order.min(left).min(known)
    }

    fn weights(&self, index: usize, order: usize) -> Result<Weights> {
        let corrected = index + 1 < self.steps.len() && !self.options.disable_corrector.contains(&index);
        self.steps[index].weights(&self.run.points()[..index], self.options.solver_type, order, corrected)
    }

    /// The model's output as x_0, or as epsilon without `predict_x0`.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let solver = &self.options.solver;
        if self.options.predict_x0 {
            return solver.limited(self.run.x0(solver.prediction_type, output, sample, index)?);
        }
        let Point { alpha, sigma, .. } = self.run.points()[index];
        predicted_epsilon(solver.prediction_type, output, sample, alpha, sigma)
    }
}

impl Scheduler for UniPCMultistepScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        self.start(timesteps, None)
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        self.start(timesteps, self.options.solver.use_dynamic_shifting.then_some(mu))
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let index = self.run.locate(timestep)?;
        let output = self.convert_model_output(model_output, sample, index)?;
        let sample = match self.last.take() {
            Some(last) if !self.options.disable_corrector.contains(&(index - 1)) => last.correct(&output)?,
            _ => sample.shallow_clone(),
        };
        self.run.remember(output, self.options.solver.solver_order);

        let order = self.order(index, self.run.outputs().len());
        let planned = &self.weights[index];
        let weights = if planned.order() == order { planned.clone() } else { self.weights(index, order)? };
        let prediction = Prediction::new(weights, &sample, self.run.outputs())?;
        let prev_sample = prediction.predict()?;
        self.last = Some(prediction);
        self.run.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }
}
