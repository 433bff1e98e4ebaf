//! DPM-Solver-2 with ancestral noise: each step goes too far down, then adds fresh noise.
//!
//! Mirrors `diffusers/schedulers/scheduling_k_dpm_2_ancestral_discrete.py` at 0.42.1, after k-diffusion's
//! `sample_dpm_2_ancestral` (arXiv:2206.00364, arXiv:2206.00927).

use super::levels::{LevelOptions, Request, TrainingLevels};
use super::midpoint_run::{Layout, MidpointRun, Options, PREDICTIONS, for_each_call, rounded_levels, with_midpoints};
use super::noise_run::NoiseLevels;
use super::scheduling_utils::{
    Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps, as_configured, as_it_runs,
};
use super::settings::settle;
use super::step_math::{sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::TensorExt;
use tch::Tensor;

/// DPM-Solver-2, ancestral: random, so that a seed's picture also depends on the number of steps.
///
/// [`Scheduler::timesteps`] holds the midpoints too, one timestep for each call of the model.
#[derive(Debug)]
pub struct KDPM2AncestralDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    levels: TrainingLevels,
    run: MidpointRun,
    /// The noise that is added at the end of the step that a call begins, in the run and in all of the training.
    sigmas_up: Vec<f32>,
}

impl SchedulerMixin for KDPM2AncestralDiscreteScheduler {
    const CLASS_NAME: &'static str = "KDPM2AncestralDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        options.levels.check(Self::CLASS_NAME, &PREDICTIONS)?;
        let levels = TrainingLevels::new(&options.levels.betas.alphas_cumprod(false)?)?;
        let (training, sigmas_up) = lay_out(&options.levels, options.levels.whole_training()?, &levels, &config)?;
        Ok(Self { options, config, levels, run: MidpointRun::new(training), sigmas_up })
    }
}

/// The levels of a run, whose midpoints are halfway, in the logarithm, to where a step goes down; and the noise added there.
fn lay_out(
    options: &LevelOptions,
    request: Request,
    training: &TrainingLevels,
    config: &ConfigMap,
) -> Result<(Layout, Vec<f32>)> {
    let laid_out = rounded_levels(options, request, training, config)?;
    let sigmas = Tensor::f_from_slice(&laid_out.sigmas)?;
    let next: Vec<f32> = laid_out.sigmas[1..].iter().copied().chain([0.0]).collect();
    let variance = sigmas.f_square()?;
    let next_variance = Tensor::f_from_slice(&next)?.f_square()?;
    let sigmas_up = next_variance.f_mul(&variance.f_sub(&next_variance)?)?.f_div(&variance)?.f_sqrt()?;
    let sigmas_down = next_variance.f_sub(&sigmas_up.f_square()?)?.f_sqrt()?;
    let down_to_zero = last_set_to_zero(sigmas_down.to_vec()?, 1);
    let log_down = Tensor::f_from_slice(&down_to_zero)?.f_log()?;
    let halfway = sigmas.f_log()?.f_lerp(&log_down, 0.5)?.f_exp()?.to_vec()?;
    let midpoints = last_set_to_zero(halfway, 2);
    let timesteps = with_midpoints(&laid_out, &midpoints, training)?;
    let layout = Layout {
        levels: NoiseLevels::new(timesteps, for_each_call(&laid_out.sigmas))?,
        midpoints: NoiseLevels::new(Vec::new(), for_each_call(&midpoints))?,
        ends: for_each_call(&down_to_zero),
    };
    Ok((layout, for_each_call(&sigmas_up.to_vec()?)))
}

/// Sigma 0 has no logarithm, and none of its variance can be split: the last `count` values are 0 instead.
fn last_set_to_zero(mut values: Vec<f32>, count: usize) -> Vec<f32> {
    values.iter_mut().rev().take(count).for_each(|value| *value = 0.0);
    values
}

impl Scheduler for KDPM2AncestralDiscreteScheduler {
    as_configured!();
    as_it_runs!();

    fn order(&self) -> usize {
        2
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let request = self.options.levels.request(timesteps, Self::CLASS_NAME)?;
        let (layout, sigmas_up) = lay_out(&self.options.levels, request, &self.levels, &self.config)?;
        // Differs from diffusers: its picture is not a number then.
        if layout.midpoints.sigmas.iter().any(|sigma| sigma.is_nan()) {
            return Err(Error::Argument(
                "the noise levels of so few steps fall too steeply for ancestral noise in float32: use more steps"
                    .into(),
            ));
        }
        self.run.start(layout);
        self.sigmas_up = sigmas_up;
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
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        let half = self.run.step(self.options.levels.prediction_type, model_output, timestep, sample)?;
        let prev_sample = match half.began {
            None => half.sample,
            Some(began) => {
                let noise = options.noise(model_output, model_output.f_kind()?)?;
                sum(half.sample, &times(&noise, self.sigmas_up[began])?)?
            }
        };
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(half.pred_original_sample) })
    }
}
