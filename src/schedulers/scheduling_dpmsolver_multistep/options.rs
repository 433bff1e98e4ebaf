//! The options of `DPMSolverMultistepScheduler`, with diffusers' defaults.

use super::super::betas::BetaConfig;
use super::super::scheduling_euler_discrete::one_of_the_sigmas;
use super::super::scheduling_utils::PredictionType;
use super::super::settings::{Alias, maybe_infinite};
use super::super::sigmas::FinalSigmasType;
use super::super::spacing::TimestepSpacing;
use super::updates::{Algorithm, SolverType};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

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
    pub(super) algorithm_type: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
    pub(super) use_lu_lambdas: bool,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) final_sigmas_type: FinalSigmasType,
    #[serde(with = "maybe_infinite")]
    pub(super) lambda_min_clipped: f64,
    pub(super) variance_type: Option<String>,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) use_dynamic_shifting: bool,
    pub(super) time_shift_type: String,
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
            algorithm_type: Algorithm::DPMSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            final_sigmas_type: FinalSigmasType::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".into(),
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
        one_of_the_sigmas(&[
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ])?;
        let noise_prediction = !self.algorithm_type.predicts_x0();
        if !(1..=3).contains(&self.solver_order) {
            return Err(Error::Unsupported(format!("`solver_order` {}: use 1, 2 or 3", self.solver_order)));
        }
        // diffusers has no such update, and fails in the third step.
        if self.solver_order == 3 && self.algorithm_type == Algorithm::SdeDPMSolver {
            return Err(Error::Unsupported("`solver_order` 3 of `algorithm_type` sde-dpmsolver: use 1 or 2".into()));
        }
        if noise_prediction && self.final_sigmas_type == FinalSigmasType::Zero {
            return Err(Error::Config(format!(
                "`final_sigmas_type` zero cannot be used with `algorithm_type` {}: use sigma_min",
                self.algorithm_type.name()
            )));
        }
        if noise_prediction && self.prediction_type == PredictionType::FlowPrediction {
            return Err(Error::Unsupported(format!(
                "`prediction_type` flow_prediction of `algorithm_type` {}: use dpmsolver++ or sde-dpmsolver++",
                self.algorithm_type.name()
            )));
        }
        Ok(())
    }

    /// Whether the model gives the variance in channels of its own; other schedulers have more values of the option.
    pub(super) fn learns_variance(&self) -> bool {
        matches!(self.variance_type.as_deref(), Some("learned" | "learned_range"))
    }

    pub(super) fn set_lu_or_karras(&self) -> bool {
        self.use_karras_sigmas || self.use_lu_lambdas
    }
}
