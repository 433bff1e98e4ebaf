//! What DPM-Solver, DEIS and UniPC have in common: options, and a run over lambda.
//!
//! diffusers 0.42.1 repeats these in each of its solvers.

use super::arrays::interp;
use super::betas::{BetaConfig, log_sigmas};
use super::cursor::{Cursor, not_set};
use super::half_log_snr::{Point, alpha_sigma_tensors, flow_sigmas};
use super::scheduling_utils::PredictionType;
use super::sigmas::{LogSigmas, SigmaRange, SigmaSwitches};
use super::step_math::{Thresholding, mix};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The options of all four.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct SolverOptions {
    #[serde(flatten)]
    pub(super) betas: BetaConfig,
    pub(super) solver_order: usize,
    pub(super) prediction_type: PredictionType,
    pub(super) thresholding: bool,
    pub(super) dynamic_thresholding_ratio: f64,
    pub(super) sample_max_value: f64,
    #[serde(flatten)]
    pub(super) switches: SigmaSwitches,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) use_dynamic_shifting: bool,
}

impl Default for SolverOptions {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            switches: SigmaSwitches::default(),
            use_flow_sigmas: false,
            flow_shift: 1.0,
            use_dynamic_shifting: false,
        }
    }
}

impl SolverOptions {
    /// Refuses options that exclude each other, and orders above `highest`.
    pub(super) fn check(&self, highest: usize) -> Result<()> {
        self.switches.check()?;
        match (1..=highest).contains(&self.solver_order) {
            true => Ok(()),
            false => Err(Error::Unsupported(format!("`solver_order` {}: use 1 to {highest}", self.solver_order))),
        }
    }

    /// `x0` as dynamic thresholding leaves it, where that is on.
    pub(super) fn limited(&self, x0: Tensor) -> Result<Tensor> {
        if !self.thresholding {
            return Ok(x0);
        }
        Thresholding { ratio: self.dynamic_thresholding_ratio, max_value: self.sample_max_value }.apply(&x0)
    }

    /// Has the noise levels of a flow-matching run shifted by `mu`.
    pub(super) fn shift_by(&mut self, mu: f64, time_shift_type: &str) -> Result<()> {
        match (self.use_dynamic_shifting, time_shift_type) {
            (true, "exponential") => self.flow_shift = mu.exp(),
            _ => {
                let needs = "`mu` needs `use_dynamic_shifting`, and exponential as `time_shift_type`";
                return Err(Error::Argument(needs.into()));
            }
        }
        Ok(())
    }

    /// Timesteps and noise levels of a flow, or else those of the timesteps `spaced`.
    pub(super) fn flow_or_spaced(&self, spaced: Vec<f64>, steps: usize, training: &[f32]) -> (Vec<f64>, Vec<f64>) {
        if self.use_flow_sigmas {
            return flow_sigmas(self.flow_shift, self.betas.num_train_timesteps, steps);
        }
        let sigmas = spaced.iter().map(|t| interp(*t, training)).collect();
        (spaced, sigmas)
    }
}

/// The ends of the training's noise levels, unless `config` has others.
pub(super) fn training_range(config: &ConfigMap, training: &[f32]) -> SigmaRange {
    SigmaRange::new(config, f64::from(training[training.len() - 1]), f64::from(training[0]))
}

/// Whole timesteps at which the training's noise levels are `sigmas`: the nearest ones if `rounds`, else those below.
pub(super) fn timesteps_of(sigmas: &[f64], training: &[f32], rounds: bool) -> Result<Vec<f64>> {
    let logs = LogSigmas::Single(log_sigmas(training));
    let whole = if rounds { f64::round_ties_even } else { f64::trunc };
    sigmas.iter().map(|sigma| logs.timestep(*sigma).map(whole)).collect()
}

/// A run: its noise levels, where it stands, and what the model said last.
#[derive(Debug)]
pub(super) struct SolverRun {
    class_name: &'static str,
    flow: bool,
    timesteps: Vec<f64>,
    /// One more than timesteps.
    sigmas: Vec<f32>,
    points: Vec<Point>,
    /// The last converted outputs of the model, newest last.
    model_outputs: Vec<Tensor>,
    cursor: Cursor,
}

impl SolverRun {
    /// No run yet.
    pub(super) fn new(class_name: &'static str) -> Self {
        let (timesteps, sigmas, points, model_outputs, cursor) = Default::default();
        Self { class_name, flow: false, timesteps, sigmas, points, model_outputs, cursor }
    }

    /// Starts a run over `sigmas`, the final level included: ratios of noise to signal, or with `flow` the noise's share.
    pub(super) fn start(&mut self, timesteps: Vec<f64>, sigmas: Vec<f64>, flow: bool) -> Result<()> {
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let points = Point::of(&sigmas, flow)?;
        *self = Self { flow, timesteps, sigmas, points, ..Self::new(self.class_name) };
        Ok(())
    }

    /// The index of the step to take from `timestep`.
    pub(super) fn locate(&mut self, timestep: f64) -> Result<usize> {
        if self.timesteps.is_empty() {
            return Err(not_set(self.class_name));
        }
        self.cursor.locate(&self.timesteps, timestep)
    }

    pub(super) fn begin_at(&mut self, index: usize) {
        self.cursor.begin_at(index);
    }

    pub(super) fn advance(&mut self) {
        self.cursor.advance();
    }

    pub(super) fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    pub(super) fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    /// The points of the last `order` steps up to the one at `index`, and the one where that ends.
    pub(super) fn points_of(&self, index: usize, order: usize) -> &[Point] {
        &self.points[index + 1 - order..=index + 1]
    }

    /// The converted outputs that are known, newest last.
    pub(super) fn outputs(&self) -> &[Tensor] {
        &self.model_outputs
    }

    /// The newest `order` of them.
    pub(super) fn outputs_of(&self, order: usize) -> &[Tensor] {
        &self.model_outputs[self.model_outputs.len() - order..]
    }

    /// Keeps `output`, and no more than `solver_order` of them.
    pub(super) fn remember(&mut self, output: Tensor, solver_order: usize) {
        if self.model_outputs.len() == solver_order {
            drop(self.model_outputs.remove(0));
        }
        self.model_outputs.push(output);
    }

    /// The noise-free sample that a prediction at the step of `index` stands for.
    pub(super) fn x0(
        &self,
        prediction_type: PredictionType,
        output: &Tensor,
        sample: &Tensor,
        index: usize,
    ) -> Result<Tensor> {
        self.points[index].x0(prediction_type, output, sample, self.sigmas[index])
    }

    pub(super) fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        // Differs from diffusers: before `set_timesteps` its table of sigmas runs upwards, its timesteps downwards.
        if self.timesteps.is_empty() {
            return Err(not_set(self.class_name));
        }
        let steps = self.cursor.noise_indices(&self.timesteps, timesteps)?;
        let sigmas: Vec<f32> = steps.into_iter().map(|step| self.sigmas[step]).collect();
        let (alpha, sigma) = alpha_sigma_tensors(&sigmas, original_samples, self.flow)?;
        mix(&alpha, original_samples, &sigma, noise)
    }
}
