//! The options of `DEISMultistepScheduler`, with diffusers' defaults.

use super::super::settings::Alias;
use super::super::solver_run::SolverOptions;
use super::super::spacing::TimestepSpacing;
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
    pub(super) solver: SolverOptions,
    pub(super) algorithm_type: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) time_shift_type: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            solver: SolverOptions::default(),
            algorithm_type: Algorithm::Deis,
            solver_type: SolverType::Logrho,
            lower_order_final: true,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
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
