//! The update formulas of DEIS in rho = sigma / alpha.
//!
//! x / alpha moves by the integral of epsilon over rho, where epsilon is the polynomial in log(rho) through the last
//! outputs of the model. The integrals of the polynomial's terms have closed forms.

use super::super::arrays::{log_f32, through_libtorch};
use super::super::half_log_snr::Point;
use super::super::step_math::{scale, scaled, sum};
use crate::error::Result;
use crate::torch::NumberExt;
use tch::Tensor;

/// x_t from `sample` at the last point but one: `points` are those of the outputs, oldest first, and t.
pub(super) fn update(sample: &Tensor, points: &[Point], outputs: &[Tensor]) -> Result<Tensor> {
    match (points, outputs) {
        ([s, t], [m]) => first_order(sample, *s, *t, m),
        ([s1, s0, t], [m1, m0]) => {
            let [t_rho, s0_rho, s1_rho] = [t, s0, s1].map(Rho::of);
            let c0 = linear(t_rho, s0_rho, s1_rho) - linear(s0_rho, s0_rho, s1_rho);
            let c1 = linear(t_rho, s1_rho, s0_rho) - linear(s0_rho, s1_rho, s0_rho);
            combine(sample, *s0, *t, &[(c0, m0), (c1, m1)])
        }
        ([s2, s1, s0, t], [m2, m1, m0]) => {
            let [t_rho, s0_rho, s1_rho, s2_rho] = [t, s0, s1, s2].map(Rho::of);
            let over = |b, c, d| quadratic(t_rho, b, c, d) - quadratic(s0_rho, b, c, d);
            let c0 = over(s0_rho, s1_rho, s2_rho);
            let c1 = over(s1_rho, s2_rho, s0_rho);
            let c2 = over(s2_rho, s0_rho, s1_rho);
            combine(sample, *s0, *t, &[(c0, m0), (c1, m1), (c2, m2)])
        }
        _ => Ok(sample.shallow_clone()),
    }
}

/// The exponential integrator with a constant epsilon, which is DDIM.
fn first_order(sample: &Tensor, s: Point, t: Point, output: &Tensor) -> Result<Tensor> {
    let exp_h = through_libtorch(t.lambda - s.lambda, Tensor::f_exp)?;
    sum(scaled(t.alpha / s.alpha, sample)?, &scaled(-(t.sigma * (exp_h - 1.0)), output)?)
}

/// alpha_t (x / alpha_s + sum_k c_k m_k).
fn combine(sample: &Tensor, s: Point, t: Point, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let mut x = sample.over(f64::from(s.alpha))?;
    for (coefficient, output) in terms {
        x = sum(x, &scaled(*coefficient, output)?)?;
    }
    scale(t.alpha, x)
}

/// rho and its logarithm, as NumPy rounds it.
#[derive(Clone, Copy)]
struct Rho {
    value: f32,
    log: f32,
}

impl Rho {
    fn of(point: &Point) -> Self {
        let value = point.sigma / point.alpha;
        Self { value, log: log_f32(value) }
    }
}

/// The antiderivative, at t, of the polynomial of degree one in log(rho) that is 1 at b and 0 at c.
fn linear(t: Rho, b: Rho, c: Rho) -> f32 {
    t.value * (-c.log + t.log - 1.0) / (b.log - c.log)
}

/// The antiderivative, at t, of the polynomial of degree two in log(rho) that is 1 at b and 0 at c and d.
fn quadratic(t: Rho, b: Rho, c: Rho, d: Rho) -> f32 {
    let integral = c.log * (d.log - t.log + 1.0) - d.log * t.log + d.log + t.log * t.log - 2.0 * t.log + 2.0;
    t.value * integral / ((b.log - c.log) * (b.log - d.log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_antiderivatives_have_the_polynomials_as_slopes() {
        let rho = |value: f32| Rho { value, log: value.ln() };
        let (b, c, d) = (rho(1.0), rho(2.0), rho(4.0));
        let slope = |f: &dyn Fn(Rho) -> f32, at: f32| (f(rho(at + 0.01)) - f(rho(at - 0.01))) / 0.02;
        for (at, expected) in [(1.0, 1.0), (2.0, 0.0)] {
            assert!((slope(&|t| linear(t, b, c), at) - expected).abs() < 1e-2);
            assert!((slope(&|t| quadratic(t, b, c, d), at) - expected).abs() < 1e-2);
        }
        assert!(slope(&|t| quadratic(t, b, c, d), 4.0).abs() < 1e-2);
    }
}
