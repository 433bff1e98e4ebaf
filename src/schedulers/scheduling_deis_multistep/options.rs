//! The options of `DEISMultistepScheduler`, with diffusers' defaults.

use super::super::betas::BetaConfig;
use super::super::scheduling_euler_discrete::one_of_the_sigmas;
use super::super::scheduling_utils::PredictionType;
use super::super::settings::Alias;
use super::super::spacing::TimestepSpacing;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Algorithm {
    Deis,
}

/// What the interpolating polynomials are polynomials of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SolverType {
    Logrho,
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
    pub(super) algorithm_type: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) use_karras_sigmas: bool,
    pub(super) use_exponential_sigmas: bool,
    pub(super) use_beta_sigmas: bool,
    pub(super) use_flow_sigmas: bool,
    pub(super) flow_shift: f64,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
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
            algorithm_type: Algorithm::Deis,
            solver_type: SolverType::Logrho,
            lower_order_final: true,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".into(),
        }
    }
}

/// Solvers that diffusers' other multistep schedulers have, and what they become here.
pub(super) const ALIASES: [Alias; 6] = [
    ("algorithm_type", "dpmsolver", "deis"),
    ("algorithm_type", "dpmsolver++", "deis"),
    ("solver_type", "midpoint", "logrho"),
    ("solver_type", "heun", "logrho"),
    ("solver_type", "bh1", "logrho"),
    ("solver_type", "bh2", "logrho"),
];

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        one_of_the_sigmas(&[
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ])?;
        if !(1..=3).contains(&self.solver_order) {
            return Err(Error::Unsupported(format!("`solver_order` {}: use 1, 2 or 3", self.solver_order)));
        }
        Ok(())
    }
}
