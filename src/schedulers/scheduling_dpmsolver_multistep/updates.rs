//! The update formulas, in the papers' symbols.
//!
//! A step goes from s_0 to t and knows the model's outputs at s_0, s_1 and s_2. Each update is a linear combination
//! x_t = c x + c_0 D_0 + c_1 D_1 + c_2 D_2 + c_z z of the sample, the outputs' divided differences, and fresh noise.

use super::super::arrays::{sqrt, through_libtorch};
use super::super::half_log_snr::Point;
use super::super::step_math::{scale, scaled, sum};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What is integrated, and whether noise is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(in super::super) enum Algorithm {
    /// The ODE in terms of epsilon (arXiv:2206.00927).
    #[serde(rename = "dpmsolver")]
    DPMSolver,
    /// The ODE in terms of x_0 (arXiv:2211.01095).
    #[serde(rename = "dpmsolver++")]
    DPMSolverPlusPlus,
    /// The SDE in terms of epsilon.
    #[serde(rename = "sde-dpmsolver")]
    SdeDPMSolver,
    /// The SDE in terms of x_0.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDPMSolverPlusPlus,
}

impl Algorithm {
    pub(in super::super) fn predicts_x0(self) -> bool {
        matches!(self, Self::DPMSolverPlusPlus | Self::SdeDPMSolverPlusPlus)
    }

    pub(in super::super) fn is_sde(self) -> bool {
        matches!(self, Self::SdeDPMSolver | Self::SdeDPMSolverPlusPlus)
    }

    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Self::DPMSolver => "dpmsolver",
            Self::DPMSolverPlusPlus => "dpmsolver++",
            Self::SdeDPMSolver => "sde-dpmsolver",
            Self::SdeDPMSolverPlusPlus => "sde-dpmsolver++",
        }
    }
}

/// How the second-order update weighs the difference of the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum SolverType {
    Midpoint,
    Heun,
}

/// What the updates from s_0 to t are made of. It depends on the noise levels alone.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Step {
    algorithm: Algorithm,
    s0: Point,
    t: Point,
    /// lambda_t - lambda_s0.
    h: f32,
    /// e^(-h) where x_0 is integrated, e^h where epsilon is.
    exp_h: f32,
    /// e^(-2h) or e^(2h) in the same way, for the SDEs.
    exp_2h: f32,
    /// sqrt of how much variance an SDE adds, in units of sigma_t².
    deviation: f32,
}

impl Step {
    pub(in super::super) fn new(algorithm: Algorithm, s0: Point, t: Point) -> Result<Self> {
        let h = t.lambda - s0.lambda;
        let exponent = if algorithm.predicts_x0() { -h } else { h };
        let exp_h = through_libtorch(exponent, Tensor::f_exp)?;
        let exp_2h = if algorithm.is_sde() { through_libtorch(2.0 * exponent, Tensor::f_exp)? } else { f32::NAN };
        let deviation = match algorithm {
            Algorithm::SdeDPMSolverPlusPlus => sqrt(1.0 - exp_2h)?,
            Algorithm::SdeDPMSolver => sqrt(exp_2h - 1.0)?,
            _ => 0.0,
        };
        Ok(Self { algorithm, s0, t, h, exp_h, exp_2h, deviation })
    }

    /// The update of `order`, after the steps `before` this one.
    pub(super) fn update(&self, before: &[Self], solver_type: SolverType, order: usize) -> Update {
        let ratio = |steps_back: usize| before[before.len() - steps_back].h / self.h;
        let (sample, d0, noise) = self.first_order();
        let differences = match order {
            1 => Differences::None,
            2 => Differences::First { r0: ratio(1), d1: self.second_order(solver_type) },
            _ => {
                let (d1, d2) = self.third_order();
                Differences::Second { r0: ratio(1), r1: ratio(2), d1, d2 }
            }
        };
        Update { sample, d0, differences, noise }
    }

    /// c, c_0 and c_z.
    pub(in super::super) fn first_order(&self) -> (f32, f32, f32) {
        let Self { s0, t, exp_h, exp_2h, deviation, .. } = self;
        match self.algorithm {
            Algorithm::DPMSolverPlusPlus => (t.sigma / s0.sigma, -(t.alpha * (exp_h - 1.0)), 0.0),
            Algorithm::DPMSolver => (t.alpha / s0.alpha, -(t.sigma * (exp_h - 1.0)), 0.0),
            Algorithm::SdeDPMSolverPlusPlus => {
                (t.sigma / s0.sigma * exp_h, t.alpha * (1.0 - exp_2h), t.sigma * deviation)
            }
            Algorithm::SdeDPMSolver => (t.alpha / s0.alpha, -(2.0 * (t.sigma * (exp_h - 1.0))), t.sigma * deviation),
        }
    }

    /// c_1 of the second order.
    pub(in super::super) fn second_order(&self, solver_type: SolverType) -> f32 {
        let Self { t, h, exp_h, exp_2h, .. } = self;
        match (self.algorithm, solver_type) {
            (Algorithm::DPMSolverPlusPlus, SolverType::Midpoint) => -(0.5 * (t.alpha * (exp_h - 1.0))),
            (Algorithm::DPMSolverPlusPlus, SolverType::Heun) => t.alpha * ((exp_h - 1.0) / h + 1.0),
            (Algorithm::DPMSolver, SolverType::Midpoint) => -(0.5 * (t.sigma * (exp_h - 1.0))),
            (Algorithm::DPMSolver, SolverType::Heun) => -(t.sigma * ((exp_h - 1.0) / h - 1.0)),
            (Algorithm::SdeDPMSolverPlusPlus, SolverType::Midpoint) => 0.5 * (t.alpha * (1.0 - exp_2h)),
            (Algorithm::SdeDPMSolverPlusPlus, SolverType::Heun) => t.alpha * ((1.0 - exp_2h) / (-2.0 * h) + 1.0),
            (Algorithm::SdeDPMSolver, SolverType::Midpoint) => -(t.sigma * (exp_h - 1.0)),
            (Algorithm::SdeDPMSolver, SolverType::Heun) => -(2.0 * (t.sigma * ((exp_h - 1.0) / h - 1.0))),
        }
    }

    /// c_1 and c_2 of the third order.
    pub(in super::super) fn third_order(&self) -> (f32, f32) {
        let Self { t, h, exp_h, exp_2h, .. } = self;
        match self.algorithm {
            Algorithm::DPMSolverPlusPlus => {
                (t.alpha * ((exp_h - 1.0) / h + 1.0), -(t.alpha * ((exp_h - 1.0 + h) / (h * h) - 0.5)))
            }
            Algorithm::DPMSolver | Algorithm::SdeDPMSolver => {
                (-(t.sigma * ((exp_h - 1.0) / h - 1.0)), -(t.sigma * ((exp_h - 1.0 - h) / (h * h) - 0.5)))
            }
            Algorithm::SdeDPMSolverPlusPlus => {
                let two_h = 2.0 * h;
                (
                    t.alpha * ((1.0 - exp_2h) / (-2.0 * h) + 1.0),
                    t.alpha * ((1.0 - exp_2h - two_h) / (two_h * two_h) - 0.5),
                )
            }
        }
    }
}

/// The coefficients of one update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    sample: f32,
    d0: f32,
    differences: Differences,
    noise: f32,
}

/// Which divided differences an update has; r_k are the lengths of the steps before, in units of h.
#[derive(Clone, Copy, Debug)]
enum Differences {
    None,
    First { r0: f32, d1: f32 },
    Second { r0: f32, r1: f32, d1: f32, d2: f32 },
}

impl Update {
    /// x_t, from the sample in float32 and the model's outputs, newest last.
    pub(super) fn apply(&self, sample: &Tensor, outputs: &[Tensor], noise: Option<&Tensor>) -> Result<Tensor> {
        let newest = |back: usize| &outputs[outputs.len() - 1 - back];
        let m0 = newest(0);
        let mut x = sum(scaled(self.sample, sample)?, &scaled(self.d0, m0)?)?;
        match self.differences {
            Differences::None => {}
            Differences::First { r0, d1 } => {
                let difference = scale(1.0 / r0, m0.f_sub(newest(1))?)?;
                x = sum(x, &scale(d1, difference)?)?;
            }
            Differences::Second { r0, r1, d1, d2 } => {
                let d1_0 = scale(1.0 / r0, m0.f_sub(newest(1))?)?;
                let d1_1 = scale(1.0 / r1, newest(1).f_sub(newest(2))?)?;
                let change = d1_0.f_sub(&d1_1)?;
                let first = sum(scaled(r0 / (r0 + r1), &change)?, &d1_0)?;
                x = sum(x, &scale(d1, first)?)?;
                x = sum(x, &scale(d2, scale(1.0 / (r0 + r1), change)?)?)?;
            }
        }
        match noise {
            Some(noise) => sum(x, &scaled(self.noise, noise)?),
            None => Ok(x),
        }
    }
}
