//! The options of `UniPCMultistepScheduler`, with diffusers' defaults.

use super::super::scheduling_utils::PredictionType;
use super::super::settings::Alias;
use super::super::sigmas::FinalSigmasType;
use super::super::solver_run::SolverOptions;
use super::super::spacing::TimestepSpacing;
use super::updates::SolverType;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimeShiftType {
    Exponential,
    Linear,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Options {
    #[serde(flatten)]
    pub(super) solver: SolverOptions,
    pub(super) predict_x0: bool,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) solver_p: Option<serde_json::Value>,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) final_sigmas_type: FinalSigmasType,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) time_shift_type: TimeShiftType,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) shift_terminal: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            solver: SolverOptions::default(),
            predict_x0: true,
            solver_type: SolverType::Bh2,
            lower_order_final: true,
            disable_corrector: Vec::new(),
            solver_p: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            final_sigmas_type: FinalSigmasType::Zero,
            rescale_betas_zero_snr: false,
            time_shift_type: TimeShiftType::Exponential,
            sigma_min: None,
            sigma_max: None,
            shift_terminal: None,
        }
    }
}

/// Solvers that diffusers' other multistep schedulers have, and what they become here.
pub(super) const ALIASES: [Alias; 3] =
    [("solver_type", "midpoint", "bh2"), ("solver_type", "heun", "bh2"), ("solver_type", "logrho", "bh2")];

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        self.solver.check(5)?;
        if self.solver_p.is_some() {
            return Err(Error::Unsupported("`solver_p`, a predictor that is a scheduler of its own".into()));
        }
        if self.shift_terminal.is_some() && !self.solver.use_flow_sigmas {
            return Err(Error::Config("`shift_terminal` needs `use_flow_sigmas`".into()));
        }
        if !self.predict_x0 && self.solver.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("`prediction_type` flow_prediction needs `predict_x0`".into()));
        }
        Ok(())
    }
}
