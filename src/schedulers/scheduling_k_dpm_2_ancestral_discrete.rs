//! DPM-Solver-2 with ancestral noise: each step goes too far down, then adds fresh noise.
//!
//! Mirrors `diffusers/schedulers/scheduling_k_dpm_2_ancestral_discrete.py` at 0.42.1, after k-diffusion's
//! `sample_dpm_2_ancestral` (arXiv:2206.00364, arXiv:2206.00927).

use super::cursor::Cursor;
use super::levels::{LevelOptions, Request, TrainingLevels};
use super::scheduling_euler_discrete::{Run, pred_original_sample};
use super::scheduling_k_dpm_2_discrete::{Options, PREDICTIONS, for_each_call, rounded_levels, with_midpoints};
use super::scheduling_utils::{Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::step_math::{difference_quotient, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::torch::{NumberExt, TensorExt};
use tch::Tensor;

/// DPM-Solver-2, ancestral: random, so that a seed's picture also depends on the number of steps.
///
/// [`Scheduler::timesteps`] holds the midpoints too, one timestep for each call of the model.
#[derive(Debug)]
pub struct KDPM2AncestralDiscreteScheduler {
    options: Options,
    config: ConfigMap,
    levels: TrainingLevels,
    training: Layout,
    /// Empty timesteps before `set_timesteps`.
    layout: Layout,
    /// Where a step began, until its second call.
    sample: Option<Tensor>,
    cursor: Cursor,
}

/// The noise levels at each call of the model.
#[derive(Clone, Debug, Default)]
struct Layout {
    run: Run,
    /// Halfway, in the logarithm, from each level to where its step goes down.
    midpoints: Run,
    sigmas_down: Vec<f32>,
    sigmas_up: Vec<f32>,
}

impl SchedulerMixin for KDPM2AncestralDiscreteScheduler {
    const CLASS_NAME: &'static str = "KDPM2AncestralDiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        options.levels.check(Self::CLASS_NAME, &PREDICTIONS)?;
        let levels = TrainingLevels::new(&options.levels.betas.alphas_cumprod(false)?)?;
        let training = Layout::new(&options.levels, options.levels.whole_training()?, &levels, &config)?;
        let (layout, sample, cursor) = Default::default();
        Ok(Self { options, config, levels, training, layout, sample, cursor })
    }
}

impl Layout {
    fn new(options: &LevelOptions, request: Request, training: &TrainingLevels, config: &ConfigMap) -> Result<Self> {
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
        Ok(Self {
            run: Run::new(timesteps, for_each_call(&laid_out.sigmas))?,
            midpoints: Run::new(Vec::new(), for_each_call(&midpoints))?,
            sigmas_down: for_each_call(&down_to_zero),
            sigmas_up: for_each_call(&sigmas_up.to_vec()?),
        })
    }
}

/// Sigma 0 has no logarithm, and none of its variance can be split: the last `count` values are 0 instead.
fn last_set_to_zero(mut values: Vec<f32>, count: usize) -> Vec<f32> {
    values.iter_mut().rev().take(count).for_each(|value| *value = 0.0);
    values
}

impl KDPM2AncestralDiscreteScheduler {
    fn layout(&self) -> &Layout {
        if self.layout.run.timesteps.is_empty() { &self.training } else { &self.layout }
    }
}

impl Scheduler for KDPM2AncestralDiscreteScheduler {
    fn class_name(&self) -> &'static str {
        Self::CLASS_NAME
    }

    fn config(&self) -> &ConfigMap {
        &self.config
    }

    fn order(&self) -> usize {
        2
    }

    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()> {
        let request = self.options.levels.request(timesteps, Self::CLASS_NAME)?;
        let layout = Layout::new(&self.options.levels, request, &self.levels, &self.config)?;
        // Differs from diffusers: its picture is not a number then.
        if layout.midpoints.sigmas.iter().any(|sigma| sigma.is_nan()) {
            return Err(Error::Argument(
                "the noise levels of so few steps fall too steeply for ancestral noise in float32: use more steps"
                    .into(),
            ));
        }
        self.layout = layout;
        self.sample = None;
        self.cursor = Cursor::default();
        Ok(())
    }

    fn set_begin_index(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.layout.run.timesteps
    }

    fn sigmas(&self) -> &[f32] {
        &self.layout().run.sigmas
    }

    fn init_noise_sigma(&self) -> f64 {
        self.layout().run.init_noise_sigma(self.options.levels.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let layout = if self.layout.run.timesteps.is_empty() { &self.training } else { &self.layout };
        let index = self.cursor.locate(&layout.run.timesteps, timestep)?;
        let deviation = match self.sample {
            None => layout.run.deviations[index],
            Some(_) => layout.midpoints.deviations[index - 1],
        };
        sample.over(f64::from(deviation))
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        // Without a run, a step walks the training's timesteps, as in diffusers.
        let layout = if self.layout.run.timesteps.is_empty() { &self.training } else { &self.layout };
        let (run, midpoints) = (&layout.run, &layout.midpoints);
        let index = self.cursor.locate(&run.timesteps, timestep)?;
        let (sigma, deviation) = match self.sample {
            None => (run.sigmas[index], run.deviations[index]),
            Some(_) => (midpoints.sigmas[index - 1], midpoints.deviations[index - 1]),
        };
        let prediction_type = self.options.levels.prediction_type;
        let x0 = pred_original_sample(prediction_type, model_output, sample, (sigma, deviation), sigma)?;
        let derivative = difference_quotient(sample, &x0, sigma)?;
        let (prev_sample, start) = match &self.sample {
            None => {
                let dt = midpoints.sigmas[index] - sigma;
                (sum(times(&derivative, dt)?, sample)?, Some(sample.shallow_clone()))
            }
            Some(start) => {
                let dt = layout.sigmas_down[index - 1] - run.sigmas[index - 1];
                let down = sum(times(&derivative, dt)?, start)?;
                let noise = options.noise(model_output, model_output.f_kind()?)?;
                (sum(times(&noise, layout.sigmas_up[index - 1])?, &down)?, None)
            }
        };
        self.sample = start;
        self.cursor.advance();
        Ok(SchedulerOutput { prev_sample, pred_original_sample: Some(x0) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let run = &self.layout().run;
        run.add_noise(&self.cursor.noise_indices(&run.timesteps, timesteps)?, original_samples, noise)
    }

    fn fresh(&self) -> Result<Box<dyn Scheduler>> {
        Ok(Box::new(Self::from_config(&self.config)?))
    }
}
