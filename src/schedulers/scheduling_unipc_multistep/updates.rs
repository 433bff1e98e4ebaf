//! The predictor UniP and the corrector UniC, in the paper's symbols (algorithms 1 and 2).
//!
//! Both go from s_0 to t over the same differences D_m = (m_s_m - m_s_0) / r_m. The corrector is run one call of the model
//! later, when the output at t is known: what it shares with the predictor is kept, not computed again.

use super::super::arrays::{round_to_kind, through_libtorch};
use super::super::half_log_snr::Point;
use super::super::step_math::{axpby, contract, difference_quotient, scaled, sum};
use crate::error::Result;
use crate::torch::TensorExt;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// B(h), the function that scales the differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SolverType {
    /// B(h) = h.
    Bh1,
    /// B(h) = e^h - 1.
    Bh2,
}

/// What a step is made of. It depends on the noise levels alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    predict_x0: bool,
    s0: Point,
    t: Point,
    /// lambda_t - lambda_s0.
    h: f32,
    /// -h where x_0 is integrated, h where epsilon is.
    hh: f32,
    /// h φ_1(h) = e^h - 1, of that h.
    h_phi_1: f32,
}

/// The coefficients of a step of a certain order.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    sample: f32,
    m0: f32,
    /// Before the differences, B(h) included.
    scale: f32,
    /// The r_m of the differences.
    rks: Vec<f32>,
    rhos_p: Vec<f32>,
    /// One more than differences; empty where no corrector follows.
    rhos_c: Vec<f32>,
}

impl Step {
    pub(super) fn new(predict_x0: bool, s0: Point, t: Point) -> Result<Self> {
        let h = t.lambda - s0.lambda;
        let hh = if predict_x0 { -h } else { h };
        Ok(Self { predict_x0, s0, t, h, hh, h_phi_1: through_libtorch(hh, Tensor::f_expm1)? })
    }

    /// The weights of this step, after the points `before` s_0.
    pub(super) fn weights(
        &self,
        before: &[Point],
        solver_type: SolverType,
        order: usize,
        corrected: bool,
    ) -> Result<Weights> {
        let Self { s0, t, hh, h_phi_1, .. } = *self;
        let b_h = if solver_type == SolverType::Bh1 { hh } else { h_phi_1 };
        let rks: Vec<f32> =
            before.iter().rev().take(order - 1).map(|point| (point.lambda - s0.lambda) / self.h).collect();
        let nodes: Vec<f32> = rks.iter().copied().chain([1.0]).collect();
        // For UniP of order two and UniC of order one the paper sets the only weight to 1/2, whatever B(h) is.
        let rhos_p = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&nodes[..order - 1], &self.right_side(order - 1, b_h))?,
        };
        let rhos_c = match order {
            _ if !corrected => Vec::new(),
            1 => vec![0.5],
            _ => solve(&nodes, &self.right_side(order, b_h))?,
        };
        let (sample, outer) =
            if self.predict_x0 { (t.sigma / s0.sigma, t.alpha) } else { (t.alpha / s0.alpha, t.sigma) };
        Ok(Weights { sample, m0: -(outer * h_phi_1), scale: -(outer * b_h), rks, rhos_p, rhos_c })
    }

    /// b_i = i! h φ_(i+1)(h) / B(h), for i from 1 to `order`.
    fn right_side(&self, order: usize, b_h: f32) -> Vec<f32> {
        let (mut h_phi_k, mut factorial) = (self.h_phi_1 / self.hh - 1.0, 1.0f64);
        let mut b = Vec::with_capacity(order);
        for i in 1..=order {
            b.push(h_phi_k * factorial as f32 / b_h);
            factorial *= (i + 1) as f64;
            h_phi_k = h_phi_k / self.hh - (1.0 / factorial) as f32;
        }
        b
    }
}

/// rho of R rho = b, where row i of R holds the i-th powers of the nodes.
fn solve(nodes: &[f32], b: &[f32]) -> Result<Vec<f32>> {
    let power = |node: f32, i: usize| through_libtorch(node, |node| node.f_pow_tensor_scalar(i as i64));
    let rows = (0..nodes.len()).flat_map(|i| nodes.iter().map(move |node| power(*node, i)));
    let side = nodes.len() as i64;
    let r = Tensor::f_from_slice(&rows.collect::<Result<Vec<f32>>>()?)?.f_view([side, side])?;
    Tensor::f_linalg_solve(&r, &Tensor::f_from_slice(b)?, true)?.to_vec()
}

impl Weights {
    /// How many outputs of the model the step uses.
    pub(super) fn order(&self) -> usize {
        self.rks.len() + 1
    }
}

/// A step that was predicted, with what its correction needs.
#[derive(Debug)]
pub(super) struct Prediction {
    weights: Weights,
    kind: tch::Kind,
    m0: Tensor,
    /// x_t of the first order.
    base: Tensor,
    differences: Vec<Tensor>,
}

impl Prediction {
    /// From `sample` at s_0 and the model's outputs, newest last.
    pub(super) fn new(weights: Weights, sample: &Tensor, outputs: &[Tensor]) -> Result<Self> {
        let m0 = outputs[outputs.len() - 1].shallow_clone();
        let base = axpby(weights.sample, sample, weights.m0, &m0)?;
        let earlier = outputs.iter().rev().skip(1).zip(&weights.rks);
        let differences = earlier.map(|(m, rk)| difference_quotient(m, &m0, *rk)).collect::<Result<_>>()?;
        Ok(Self { weights, kind: sample.f_kind()?, m0, base, differences })
    }

    /// UniP: x_t from what is known at s_0.
    // Differs from diffusers: the first order stops here. There a term 0 B(h) follows, which is NaN for `bh1` and sigma 0.
    pub(super) fn predict(&self) -> Result<Tensor> {
        let x_t = match contract(&self.weights.rhos_p, &self.differences, self.kind)? {
            Some(weighted) => sum(scaled(self.weights.scale, &weighted)?, &self.base)?,
            None => self.base.shallow_clone(),
        };
        Ok(x_t.f_to_kind(self.kind)?)
    }

    /// UniC: x_t anew, from the model's output at t as well.
    pub(super) fn correct(self, output: &Tensor) -> Result<Tensor> {
        let Some((rho_t, rhos)) = self.weights.rhos_c.split_last() else { return self.predict() };
        let newest = scaled(round_to_kind(*rho_t, self.kind)?, &output.f_sub(&self.m0)?)?;
        let weighted = match contract(rhos, &self.differences, self.kind)? {
            Some(earlier) => sum(earlier, &newest)?,
            None => newest,
        };
        Ok(sum(scaled(self.weights.scale, &weighted)?, &self.base)?.f_to_kind(self.kind)?)
    }
}
