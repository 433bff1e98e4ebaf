//! DPM-Solver-2 as k-diffusion writes it: the midpoint method in the logarithm of the noise level.
//!
//! Mirrors `diffusers/schedulers/scheduling_k_dpm_2_discrete.py` at 0.42.1, after k-diffusion's `sample_dpm_2`; the
//! algorithm is number 2 of arXiv:2206.00364, with the midpoint of DPM-Solver-2 (arXiv:2206.00927).

use super::levels::{LevelOptions, Request, TrainingLevels};
use super::midpoint_run::{Layout, MidpointRun, Options, PREDICTIONS, for_each_call, rounded_levels, with_midpoints};
use super::noise_run::NoiseLevels;
use super::scheduling_utils::{
    Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use crate::torch::TensorExt;
use tch::Tensor;

/// DPM-Solver-2: a step to the midpoint of the next level, then the whole step with the derivative found there.
///
/// [`Scheduler::timesteps`] holds the midpoints too, one timestep for each call of the model.
#[derive(Debug)]
pub struct KDPM2DiscreteScheduler {
    options: Options,
    config: ConfigMap,
    levels: TrainingLevels,
    run: MidpointRun,
}

impl SchedulerMixin for KDPM2DiscreteScheduler {
    const CLASS_NAME: &'static str = "KDPM2DiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        options.levels.check(Self::CLASS_NAME, &PREDICTIONS)?;
        let levels = TrainingLevels::new(&options.levels.betas.alphas_cumprod(false)?)?;
        let training = lay_out(&options.levels, options.levels.whole_training()?, &levels, &config)?;
        Ok(Self { options, config, levels, run: MidpointRun::new(training) })
    }
}

fn lay_out(options: &LevelOptions, request: Request, training: &TrainingLevels, config: &ConfigMap) -> Result<Layout> {
    let laid_out = rounded_levels(options, request, training, config)?;
    let sigmas = Tensor::f_from_slice(&laid_out.sigmas)?;
    // The midpoint before each level; the first level has none before it.
    let before = sigmas.f_log()?.f_lerp(&sigmas.f_roll([1], [0])?.f_log()?, 0.5)?.f_exp()?.to_vec()?;
    let timesteps = with_midpoints(&laid_out, &before[1..], training)?;
    let levels = NoiseLevels::new(timesteps, for_each_call(&laid_out.sigmas))?;
    let midpoints = NoiseLevels::new(Vec::new(), for_each_call(&before)[1..].to_vec())?;
    let ends = levels.sigmas[1..].to_vec();
    Ok(Layout { levels, midpoints, ends })
}

impl Scheduler for KDPM2DiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn order(&self) -> usize {
        2
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let request = self.options.levels.request(timesteps, Self::CLASS_NAME)?;
        self.run.start(lay_out(&self.options.levels, request, &self.levels, &self.config)?);
        Ok(())
    }

    fn init_noise_sigma(&self) -> f64 {
        self.run.init_noise_sigma(&self.options)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        self.run.scale_model_input(sample, timestep)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let half = self.run.step(self.options.levels.prediction_type, model_output, timestep, sample)?;
        Ok(SchedulerOutput { prev_sample: half.sample, pred_original_sample: Some(half.pred_original_sample) })
    }
}
