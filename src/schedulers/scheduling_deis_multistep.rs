//! DEIS: the diffusion exponential integrator, multistep, with polynomials in log(rho) (arXiv:2204.13902).
//!
//! Mirrors `diffusers/schedulers/scheduling_deis_multistep.py` at 0.42.1.

mod options;
mod updates;

use super::betas::training_sigmas;
use super::scheduling_utils::{
    PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::solver_run::{SolverRun, timesteps_of, training_range};
use super::step_math::remove_and_divide;
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use options::{ALIASES, Options};
use tch::Tensor;

/// DEIS, of order one to three: integrates the noise that the model predicts.
#[derive(Debug)]
pub struct DEISMultistepScheduler {
    options: Options,
    config: ConfigMap,
    alphas_cumprod: Vec<f32>,
    /// Its outputs are predictions of the noise.
    run: SolverRun,
}

impl SchedulerMixin for DEISMultistepScheduler {
    const CLASS_NAME: &'static str = "DEISMultistepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.solver.check(3)?;
        let alphas_cumprod = options.solver.betas.alphas_cumprod(false)?;
        Ok(Self { options, config, alphas_cumprod, run: SolverRun::new(Self::CLASS_NAME) })
    }
}

impl DEISMultistepScheduler {
    /// Timesteps, and their noise levels with the final one, which is never 0.
    fn lay_out(&self, timesteps: Timesteps<'_>) -> Result<(Vec<f64>, Vec<f64>)> {
        let (options, solver) = (&self.options, &self.options.solver);
        solver.betas.check()?;
        let steps = timesteps.steps(Self::CLASS_NAME)?;
        let train = solver.betas.num_train_timesteps;
        let spaced = options.timestep_spacing.solver_timesteps(train, train, steps, options.steps_offset)?;
        let training = training_sigmas(&self.alphas_cumprod)?;
        let replaced = solver.switches.levels(training_range(&self.config, &training), steps);
        let lowest_comes_twice = replaced.is_some() || solver.use_flow_sigmas;
        let (timesteps, mut sigmas) = match replaced {
            Some(sigmas) => (timesteps_of(&sigmas, &training, solver.switches.use_karras_sigmas)?, sigmas),
            None => solver.flow_or_spaced(spaced, steps, &training),
        };
        let lowest = sigmas.last().copied().filter(|_| lowest_comes_twice);
        sigmas.push(lowest.unwrap_or(f64::from(training[0])));
        Ok((timesteps, sigmas))
    }

    /// The model's output as epsilon, by way of x_0.
    fn convert_model_output(&self, output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let solver = &self.options.solver;
        let x0 = solver.limited(self.run.x0(solver.prediction_type, output, sample, index)?)?;
        let point = self.run.points()[index];
        let flows = solver.prediction_type == PredictionType::FlowPrediction;
        let sigma = if flows { self.run.sigmas()[index] } else { point.sigma };
        remove_and_divide(sample, point.alpha, &x0, sigma)
    }

    /// The order of the step at `index`: lower where outputs are still missing, and at the end of a short run.
    fn order(&self, index: usize) -> usize {
        let (steps, solver_order) = (self.run.timesteps().len(), self.options.solver.solver_order);
        let short = self.options.lower_order_final && steps < 15;
        let at_final = if short { steps - index } else { solver_order };
        solver_order.min(self.run.outputs().len()).min(at_final)
    }
}

impl Scheduler for DEISMultistepScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let (timesteps, sigmas) = self.lay_out(timesteps)?;
        self.run.start(timesteps, sigmas, self.options.solver.use_flow_sigmas)
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        let options = &mut self.options;
        options.solver.shift_by(mu, &options.time_shift_type)?;
        self.set_timesteps(timesteps)
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
        self.run.remember(output, self.options.solver.solver_order);
        let order = self.order(index);
        let prev_sample = updates::update(sample, self.run.points_of(index, order), self.run.outputs_of(order))?;
        self.run.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }
}
