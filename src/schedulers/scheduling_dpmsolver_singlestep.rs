//! DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), singlestep, of order one to three.
//!
//! Mirrors `diffusers/schedulers/scheduling_dpmsolver_singlestep.py` at 0.42.1.

mod options;
mod updates;

use super::betas::training_sigmas;
use super::cursor::{takes_no_custom, whole_timesteps};
use super::half_log_snr::last_timestep;
use super::scheduling_dpmsolver_multistep::options::ALIASES;
use super::scheduling_dpmsolver_multistep::updates::{Algorithm, Step};
use super::scheduling_utils::{
    Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::{mark_as_set, settle};
use super::sigmas::FinalSigmasType;
use super::solver_run::{SolverRun, timesteps_of, training_range};
use super::spacing::TimestepSpacing;
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
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
    run: SolverRun,
    orders: Vec<usize>,
    /// The sample that the current group of steps began with.
    sample: Option<Tensor>,
}

impl SchedulerMixin for DPMSolverSinglestepScheduler {
    const CLASS_NAME: &'static str = "DPMSolverSinglestepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let alphas_cumprod = options.dpm.solver.betas.alphas_cumprod(false)?;
        let run = SolverRun::new(Self::CLASS_NAME);
        Ok(Self { options, config, alphas_cumprod, run, orders: Vec::new(), sample: None })
    }
}

impl DPMSolverSinglestepScheduler {
    fn custom_or_spaced(&self, timesteps: Timesteps<'_>) -> Result<Vec<f64>> {
        let dpm = &self.options.dpm;
        match timesteps {
            Timesteps::Sigmas(_) => Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => {
                dpm.solver.switches.leave_room_for_custom_timesteps(&[])?;
                whole_timesteps(custom)
            }
            Timesteps::Steps(steps) => {
                let last = last_timestep(&self.alphas_cumprod, dpm.lambda_min_clipped)?;
                TimestepSpacing::Linspace.solver_timesteps(dpm.solver.betas.num_train_timesteps, last, steps, 0)
            }
        }
    }

    /// Timesteps, and their noise levels without the final one.
    fn lay_out(&self, timesteps: Timesteps<'_>, training: &[f32]) -> Result<(Vec<f64>, Vec<f64>)> {
        let solver = &self.options.dpm.solver;
        solver.betas.check()?;
        let spaced = self.custom_or_spaced(timesteps)?;
        let steps = spaced.len();
        let replaced = solver.switches.levels(training_range(&self.config, training), steps);
        let Some(sigmas) = replaced else { return Ok(solver.flow_or_spaced(spaced, steps, training)) };
        Ok((timesteps_of(&sigmas, training, solver.switches.use_karras_sigmas)?, sigmas))
    }

    /// Ends on order 1 where whole groups cannot fill the run, or its last step has to be of order 1.
    fn lower_the_final_order(&mut self, steps: usize) {
        let uneven = !steps.is_multiple_of(self.options.dpm.solver.solver_order);
        if !self.options.lower_order_final && (uneven || self.options.dpm.final_sigmas_type == FinalSigmasType::Zero) {
            tracing::debug!("DPMSolverSinglestepScheduler sets `lower_order_final` for {steps} steps");
            self.options.lower_order_final = true;
            mark_as_set(&mut self.config, "lower_order_final", true.into());
        }
    }
}

impl Scheduler for DPMSolverSinglestepScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let training = training_sigmas(&self.alphas_cumprod)?;
        let (timesteps, mut sigmas) = self.lay_out(timesteps, &training)?;
        let steps = timesteps.len();
        sigmas.push(self.options.dpm.final_sigma(&training));
        self.run.start(timesteps, sigmas, self.options.dpm.solver.use_flow_sigmas)?;
        self.lower_the_final_order(steps);
        self.orders = self.options.orders(steps);
        self.sample = None;
        Ok(())
    }

    fn set_timesteps_with_mu(&mut self, timesteps: Timesteps<'_>, mu: f64) -> Result<()> {
        let dpm = &mut self.options.dpm;
        dpm.solver.shift_by(mu, &dpm.time_shift_type)?;
        self.set_timesteps(timesteps)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let index = self.run.locate(timestep)?;
        let dpm = &self.options.dpm;
        let output = dpm.convert_model_output(&self.run, model_output, sample, index)?;
        let noise = match dpm.algorithm_type {
            Algorithm::SdeDPMSolverPlusPlus => Some(options.noise(&output, output.f_kind()?)?),
            _ => None,
        };
        self.run.remember(output, dpm.solver.solver_order);
        // A run that starts in the middle of a group begins with order 1, as there are no outputs before.
        let order = self.orders[index].min(self.run.outputs().len());
        if order == 1 {
            self.sample = Some(sample.shallow_clone());
        }
        let points = self.run.points_of(index, order);
        let whole = Step::new(dpm.algorithm_type, points[0], points[order])?;
        let update = Update { whole, points, solver_type: dpm.solver_type };
        let start = self.sample.as_ref().unwrap_or(sample);
        let prev_sample = update.apply(start, self.run.outputs_of(order), noise.as_ref())?;
        self.run.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }
}
