//! The update formulas of DPM-Solver's singlestep variants, in the papers' symbols.
//!
//! A group of steps begins at s, where the sample is kept, and knows the model's outputs there and since. Each update
//! goes from s to t over all of the group: x_t = c x + c_0 D_0 + c_1 D_1 + c_2 D_2 + c_z z, with the coefficients of the
//! multistep solver over the same interval, and differences that are taken from the group's first output.

use super::super::half_log_snr::Point;
use super::super::scheduling_dpmsolver_multistep::updates::{SolverType, Step};
use super::super::step_math::{scale, scaled, sum};
use crate::error::Result;
use crate::torch::NumberExt;
use tch::Tensor;

/// One update: where its group begins, and the points since, with t at the end.
pub(super) struct Update<'a> {
    /// From the group's beginning to t.
    pub(super) whole: Step,
    /// The points at which the model was called, the group's first one first, and t.
    pub(super) points: &'a [Point],
    pub(super) solver_type: SolverType,
}

impl Update<'_> {
    /// x_t from the group's first sample, and the model's `outputs` in its order.
    pub(super) fn apply(&self, sample: &Tensor, outputs: &[Tensor], noise: Option<&Tensor>) -> Result<Tensor> {
        let (c, c0, cz) = self.whole.first_order();
        let first = &outputs[0];
        let mut x = sum(scaled(c, sample)?, &scaled(c0, first)?)?;
        match outputs {
            [m1, m0] => {
                let d1 = scale(1.0 / self.ratio(1), m0.f_sub(m1)?)?;
                x = sum(x, &scale(self.whole.second_order(self.solver_type), d1)?)?;
            }
            [m2, m1, m0] => {
                let (r1, r0) = (self.ratio(1), self.ratio(2));
                let (c1, c2) = self.whole.third_order();
                let d1_0 = scale(1.0 / r1, m1.f_sub(m2)?)?;
                let d1_1 = scale(1.0 / r0, m0.f_sub(m2)?)?;
                if self.solver_type == SolverType::Midpoint {
                    x = sum(x, &scale(c1, d1_1)?)?;
                } else {
                    let slope = sum(scaled(r0, &d1_0)?, &scaled(-r1, &d1_1)?)?;
                    let d1 = slope.over(f64::from(r0 - r1))?;
                    let curvature = scale(2.0, d1_1.f_sub(&d1_0)?)?;
                    let d2 = curvature.over(f64::from(r0 - r1))?;
                    x = sum(x, &scale(c1, d1)?)?;
                    x = sum(x, &scale(c2, d2)?)?;
                }
            }
            _ => {}
        }
        match noise {
            Some(noise) => sum(x, &scaled(cz, noise)?),
            None => Ok(x),
        }
    }

    /// How far the group's `index`-th point lies on the way to t, in lambda.
    fn ratio(&self, index: usize) -> f32 {
        let lambda = |index: usize| self.points[index].lambda;
        (lambda(index) - lambda(0)) / (lambda(self.points.len() - 1) - lambda(0))
    }
}
