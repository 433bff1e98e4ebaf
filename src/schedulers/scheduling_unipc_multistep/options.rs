//! The options of `UniPCMultistepScheduler`, with diffusers' defaults.

use super::super::betas::BetaConfig;
use super::super::scheduling_euler_discrete::one_of_the_sigmas;
use super::super::scheduling_utils::PredictionType;
use super::super::settings::Alias;
use super::super::sigmas::FinalSigmasType;
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
    pub(super) betas: BetaConfig,
    pub(super) solver_order: usize,
    pub(super) prediction_type: PredictionType,
    pub(super) thresholding: bool,
    pub(super) dynamic_thresholding_ratio: f64,
    pub(super) sample_max_value: f64,
    pub(super) predict_x0: bool,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) solver_p: Option<serde_json::Value>,
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) final_sigmas_type: FinalSigmasType,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) use_dynamic_shifting: bool,
    pub(super) time_shift_type: TimeShiftType,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) shift_terminal: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            betas: BetaConfig::default(),
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            predict_x0: true,
            solver_type: SolverType::Bh2,
            lower_order_final: true,
            disable_corrector: Vec::new(),
            solver_p: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            final_sigmas_type: FinalSigmasType::Zero,
            rescale_betas_zero_snr: false,
            use_dynamic_shifting: false,
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
        one_of_the_sigmas(&[
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ])?;
        if !(1..=5).contains(&self.solver_order) {
            return Err(Error::Unsupported(format!("`solver_order` {}: use 1 to 5", self.solver_order)));
        }
        if self.solver_p.is_some() {
            return Err(Error::Unsupported("`solver_p`, a predictor that is a scheduler of its own".into()));
        }
        if self.shift_terminal.is_some() && !self.use_flow_sigmas {
            return Err(Error::Config("`shift_terminal` needs `use_flow_sigmas`".into()));
        }
        if !self.predict_x0 && self.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported("`prediction_type` flow_prediction needs `predict_x0`".into()));
        }
        Ok(())
    }
}
