//! The options of `DPMSolverMultistepScheduler`, and those that it shares with `DPMSolverSinglestepScheduler`, with
//! diffusers' defaults.

use super::super::half_log_snr::Point;
use super::super::scheduling_utils::PredictionType;
use super::super::settings::{Alias, maybe_infinite};
use super::super::sigmas::FinalSigmasType;
use super::super::solver_run::{SolverOptions, SolverRun};
use super::super::spacing::TimestepSpacing;
use super::super::step_math::{predicted_epsilon, remove_and_divide};
use super::updates::{Algorithm, SolverType};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The options of both.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(in super::super) struct DPMSolverOptions {
    #[serde(flatten)]
    pub(in super::super) solver: SolverOptions,
    pub(in super::super) algorithm_type: Algorithm,
    pub(in super::super) solver_type: SolverType,
    pub(in super::super) final_sigmas_type: FinalSigmasType,
    #[serde(with = "maybe_infinite")]
    pub(in super::super) lambda_min_clipped: f64,
    pub(in super::super) variance_type: Option<String>,
    pub(in super::super) time_shift_type: String,
}

impl Default for DPMSolverOptions {
    fn default() -> Self {
        Self {
            solver: SolverOptions::default(),
            algorithm_type: Algorithm::DPMSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            final_sigmas_type: FinalSigmasType::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            time_shift_type: "exponential".into(),
        }
    }
}

impl DPMSolverOptions {
    pub(in super::super) fn check(&self) -> Result<()> {
        self.solver.check(3)?;
        if self.algorithm_type.predicts_x0() {
            return Ok(());
        }
        let name = self.algorithm_type.name();
        if self.final_sigmas_type == FinalSigmasType::Zero {
            return Err(Error::Config(format!(
                "`final_sigmas_type` zero cannot be used with `algorithm_type` {name}: use sigma_min"
            )));
        }
        if self.solver.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported(format!(
                "`prediction_type` flow_prediction of `algorithm_type` {name}: use dpmsolver++ or sde-dpmsolver++"
            )));
        }
        Ok(())
    }

    /// Whether the model gives the variance in channels of its own; other schedulers have more values of the option.
    fn learns_variance(&self) -> bool {
        matches!(self.variance_type.as_deref(), Some("learned" | "learned_range"))
    }

    /// The level on which a run ends.
    pub(in super::super) fn final_sigma(&self, training: &[f32]) -> f64 {
        match self.final_sigmas_type {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => f64::from(training[0]),
        }
    }

    /// The model's output as x_0, or as epsilon for the algorithms that integrate the noise.
    pub(in super::super) fn convert_model_output(
        &self,
        run: &SolverRun,
        output: &Tensor,
        sample: &Tensor,
        index: usize,
    ) -> Result<Tensor> {
        let prediction_type = self.solver.prediction_type;
        let learned = self.learns_variance() && prediction_type == PredictionType::Epsilon;
        let output = if learned { output.f_narrow(1, 0, 3)? } else { output.shallow_clone() };
        if self.algorithm_type.predicts_x0() {
            return self.solver.limited(run.x0(prediction_type, &output, sample, index)?);
        }
        let Point { alpha, sigma, .. } = run.points()[index];
        let epsilon = predicted_epsilon(prediction_type, &output, sample, alpha, sigma)?;
        if !self.solver.thresholding {
            return Ok(epsilon);
        }
        let x0 = self.solver.limited(remove_and_divide(sample, sigma, &epsilon, alpha)?)?;
        remove_and_divide(sample, alpha, &x0, sigma)
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) dpm: DPMSolverOptions,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) use_lu_lambdas: bool,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) rescale_betas_zero_snr: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dpm: DPMSolverOptions::default(),
            lower_order_final: true,
            euler_at_final: false,
            use_lu_lambdas: false,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// Solvers that diffusers' other multistep schedulers have, and what they become here.
pub(in super::super) const ALIASES: [Alias; 4] = [
    ("algorithm_type", "deis", "dpmsolver++"),
    ("solver_type", "logrho", "midpoint"),
    ("solver_type", "bh1", "midpoint"),
    ("solver_type", "bh2", "midpoint"),
];

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        // diffusers has no such update, and fails in the third step.
        if self.dpm.solver.solver_order == 3 && self.dpm.algorithm_type == Algorithm::SdeDPMSolver {
            return Err(Error::Unsupported("`solver_order` 3 of `algorithm_type` sde-dpmsolver: use 1 or 2".into()));
        }
        self.dpm.check()
    }
}
