//! DPM-Solver-2 as k-diffusion writes it: the midpoint method in the logarithm of the noise level.
//!
//! Mirrors `diffusers/schedulers/scheduling_k_dpm_2_discrete.py` at 0.42.1, after k-diffusion's `sample_dpm_2`; the
//! algorithm is number 2 of arXiv:2206.00364, with the midpoint of DPM-Solver-2 (arXiv:2206.00927).

use super::cursor::Cursor;
use super::levels::{LevelOptions, Levels, Request, TrainingLevels, first_once_others_twice};
use super::scheduling_euler_discrete::{Run, pred_original_sample};
use super::scheduling_utils::{PredictionType, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps};
use super::settings::settle;
use super::step_math::{difference_quotient, sum, times};
use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use crate::torch::{NumberExt, TensorExt};
use serde::{Deserialize, Serialize};
use tch::Tensor;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) levels: LevelOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self { levels: LevelOptions::with_sensible_betas() }
    }
}

/// What these two schedulers can be told of the model.
pub(super) const PREDICTIONS: [PredictionType; 2] = [PredictionType::Epsilon, PredictionType::VPrediction];

/// DPM-Solver-2: a step to the midpoint of the next level, then the whole step with the derivative found there.
///
/// [`Scheduler::timesteps`] holds the midpoints too, one timestep for each call of the model.
#[derive(Debug)]
pub struct KDPM2DiscreteScheduler {
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

/// The noise levels at each call of the model, and the midpoints.
#[derive(Clone, Debug, Default)]
struct Layout {
    run: Run,
    midpoints: Run,
}

impl SchedulerMixin for KDPM2DiscreteScheduler {
    const CLASS_NAME: &'static str = "KDPM2DiscreteScheduler";

    fn from_config(config: &ConfigMap) -> Result<Self> {
        let (options, config) = settle::<Options>(Self::CLASS_NAME, config, &[])?;
        options.levels.check(Self::CLASS_NAME, &PREDICTIONS)?;
        let levels = TrainingLevels::new(&options.levels.betas.alphas_cumprod(false)?)?;
        let training = Layout::new(&options.levels, options.levels.whole_training()?, &levels, &config)?;
        let (layout, sample, cursor) = Default::default();
        Ok(Self { options, config, levels, training, layout, sample, cursor })
    }
}

/// [`LevelOptions::levels`] with whole timesteps for Karras's levels.
pub(super) fn rounded_levels(
    options: &LevelOptions,
    request: Request,
    training: &TrainingLevels,
    config: &ConfigMap,
) -> Result<Levels> {
    let mut laid_out = options.levels(request, training, config)?;
    if options.use_karras_sigmas {
        laid_out.timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    }
    Ok(laid_out)
}

/// The timesteps of `laid_out`, and between each two of them that of the midpoint's level.
pub(super) fn with_midpoints(laid_out: &Levels, midpoints: &[f32], training: &TrainingLevels) -> Result<Vec<f64>> {
    let (first, others) = laid_out.timesteps.split_at(1);
    let mut timesteps = first.to_vec();
    for (sigma, timestep) in midpoints.iter().zip(others) {
        timesteps.extend([training.logs.timestep_of_tensor(*sigma)?, *timestep]);
    }
    Ok(timesteps)
}

/// Each level twice but the first, and the last one three times.
pub(super) fn for_each_call(levels: &[f32]) -> Vec<f32> {
    first_once_others_twice(levels).into_iter().chain(levels.last().copied()).collect()
}

impl Layout {
    fn new(options: &LevelOptions, request: Request, training: &TrainingLevels, config: &ConfigMap) -> Result<Self> {
        let laid_out = rounded_levels(options, request, training, config)?;
        let sigmas = Tensor::f_from_slice(&laid_out.sigmas)?;
        // The midpoint before each level; the first level has none before it.
        let before = sigmas.f_log()?.f_lerp(&sigmas.f_roll([1], [0])?.f_log()?, 0.5)?.f_exp()?.to_vec()?;
        let timesteps = with_midpoints(&laid_out, &before[1..], training)?;
        Ok(Self {
            run: Run::new(timesteps, for_each_call(&laid_out.sigmas))?,
            midpoints: Run::new(Vec::new(), for_each_call(&before))?,
        })
    }
}

impl KDPM2DiscreteScheduler {
    fn layout(&self) -> &Layout {
        if self.layout.run.timesteps.is_empty() { &self.training } else { &self.layout }
    }
}

impl Scheduler for KDPM2DiscreteScheduler {
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
        self.layout = Layout::new(&self.options.levels, request, &self.levels, &self.config)?;
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
        let seen = if self.sample.is_none() { &layout.run } else { &layout.midpoints };
        sample.over(f64::from(seen.deviations[index]))
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _options: StepOptions<'_>,
    ) -> Result<SchedulerOutput> {
        // Without a run, a step walks the training's timesteps, as in diffusers.
        let layout = if self.layout.run.timesteps.is_empty() { &self.training } else { &self.layout };
        let (run, midpoints) = (&layout.run, &layout.midpoints);
        let index = self.cursor.locate(&run.timesteps, timestep)?;
        let seen = if self.sample.is_none() { run } else { midpoints };
        let (sigma, deviation) = (seen.sigmas[index], seen.deviations[index]);
        let prediction_type = self.options.levels.prediction_type;
        let x0 = pred_original_sample(prediction_type, model_output, sample, (sigma, deviation), sigma)?;
        let derivative = difference_quotient(sample, &x0, sigma)?;
        let (prev_sample, start) = match &self.sample {
            None => {
                let dt = midpoints.sigmas[index + 1] - sigma;
                (sum(times(&derivative, dt)?, sample)?, Some(sample.shallow_clone()))
            }
            Some(start) => {
                let dt = run.sigmas[index] - run.sigmas[index - 1];
                (sum(times(&derivative, dt)?, start)?, None)
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
