//! DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), multistep, of order one to three.
//!
//! Mirrors `diffusers/schedulers/scheduling_dpmsolver_multistep.py` at 0.42.1.

pub(super) mod options;
pub(super) mod updates;

use super::betas::{BetaSchedule, keep_last_sigma_finite, log_sigmas, training_sigmas};
use super::cursor::{takes_no_custom, whole_timesteps};
use super::half_log_snr::last_timestep;
use super::scheduling_utils::{
    Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::sigmas::{FinalSigmasType, lu};
use super::solver_run::{SolverRun, timesteps_of, training_range};
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
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
    run: SolverRun,
    steps: Vec<Step>,
}

impl SchedulerMixin for DPMSolverMultistepScheduler {
    const CLASS_NAME: &'static str = "DPMSolverMultistepScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &ALIASES)?;
        options.check()?;
        let mut alphas_cumprod = options.dpm.solver.betas.alphas_cumprod(options.rescale_betas_zero_snr)?;
        if options.rescale_betas_zero_snr {
            keep_last_sigma_finite(&mut alphas_cumprod);
        }
        let run = SolverRun::new(Self::CLASS_NAME);
        Ok(Self { options, config, alphas_cumprod, run, steps: Vec::new() })
    }
}

impl DPMSolverMultistepScheduler {
    fn custom_or_spaced(&self, timesteps: Timesteps<'_>) -> Result<Vec<f64>> {
        let options = &self.options;
        let solver = &options.dpm.solver;
        match timesteps {
            Timesteps::Sigmas(_) => Err(takes_no_custom(Self::CLASS_NAME, "sigmas")),
            Timesteps::Timesteps(custom) => {
                let others = [("use_lu_lambdas", options.use_lu_lambdas), ("use_flow_sigmas", solver.use_flow_sigmas)];
                solver.switches.leave_room_for_custom_timesteps(&others)?;
                whole_timesteps(custom)
            }
            Timesteps::Steps(steps) => options.timestep_spacing.solver_timesteps(
                solver.betas.num_train_timesteps,
                last_timestep(&self.alphas_cumprod, options.dpm.lambda_min_clipped)?,
                steps,
                options.steps_offset,
            ),
        }
    }

    /// Timesteps, and their noise levels without the final one.
    fn lay_out(&self, timesteps: Timesteps<'_>, training: &[f32]) -> Result<(Vec<f64>, Vec<f64>)> {
        let (options, solver) = (&self.options, &self.options.dpm.solver);
        solver.betas.check()?;
        let spaced = self.custom_or_spaced(timesteps)?;
        let steps = if let Timesteps::Steps(steps) = timesteps { steps } else { spaced.len() };
        let use_karras_sigmas = solver.switches.use_karras_sigmas;
        let replaced = if options.use_lu_lambdas && !use_karras_sigmas {
            let logs = log_sigmas(training);
            Some(lu(f64::from(logs[logs.len() - 1]), f64::from(logs[0]), steps))
        } else {
            solver.switches.levels(training_range(&self.config, training), steps)
        };
        let Some(sigmas) = replaced else { return Ok(solver.flow_or_spaced(spaced, steps, training)) };
        let lu_or_karras = options.use_lu_lambdas || use_karras_sigmas;
        let rounds = lu_or_karras && solver.betas.beta_schedule != BetaSchedule::SquaredcosCapV2;
        Ok((timesteps_of(&sigmas, training, rounds)?, sigmas))
    }

    /// The order of the step at `index`: lower where outputs are still missing, and at the end.
    fn order(&self, index: usize) -> usize {
        let options = &self.options;
        let solver_order = options.dpm.solver.solver_order;
        let steps = self.run.timesteps().len();
        let short = options.lower_order_final && steps < 15;
        let at_final = match steps - index {
            1 if options.euler_at_final || short || options.dpm.final_sigmas_type == FinalSigmasType::Zero => 1,
            2 if short => 2,
            _ => solver_order,
        };
        solver_order.min(self.run.outputs().len()).min(at_final)
    }
}

impl Scheduler for DPMSolverMultistepScheduler {
    as_configured!();
    as_it_runs!();

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let training = training_sigmas(&self.alphas_cumprod)?;
        let (timesteps, mut sigmas) = self.lay_out(timesteps, &training)?;
        sigmas.push(self.options.dpm.final_sigma(&training));
        self.run.start(timesteps, sigmas, self.options.dpm.solver.use_flow_sigmas)?;
        let pairs = self.run.points().windows(2);
        let steps = pairs.map(|pair| Step::new(self.options.dpm.algorithm_type, pair[0], pair[1]));
        self.steps = steps.collect::<Result<_>>()?;
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
        let kind = output.f_kind()?;
        let noise = match options.variance_noise {
            _ if !dpm.algorithm_type.is_sde() => None,
            Some(noise) => Some(noise.f_to_device(output.device())?.f_to_kind(Kind::Float)?),
            None => Some(randn_tensor(&output.size(), options.generators, Kind::Float, output.device())?),
        };
        self.run.remember(output, dpm.solver.solver_order);
        let sample = sample.f_to_kind(Kind::Float)?;
        let update = self.steps[index].update(&self.steps[..index], dpm.solver_type, self.order(index));
        let prev_sample = update.apply(&sample, self.run.outputs(), noise.as_ref())?.f_to_kind(kind)?;
        self.run.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: None })
    }
}
