//! The variables that DPM-Solver and UniPC solve in.
//!
//! x_t = alpha_t x_0 + sigma_t epsilon, and lambda_t = log(alpha_t / sigma_t), half the logarithm of the signal-to-noise
//! ratio (arXiv:2206.00927).

use super::arrays::{sqrt, through_libtorch};
use super::step_math::PerSample;
use crate::error::Result;
use tch::Tensor;

/// alpha_t, sigma_t and lambda_t at one noise level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    pub(super) lambda: f32,
}

impl Point {
    /// From the ratio `sigma` = sigma_t / alpha_t of a variance-preserving process, or from sigma_t of a flow.
    pub(super) fn new(sigma: f32, flow: bool) -> Result<Self> {
        let (alpha, sigma) = if flow {
            (1.0 - sigma, sigma)
        } else {
            let alpha = 1.0 / sqrt(sigma * sigma + 1.0)?;
            (alpha, sigma * alpha)
        };
        let lambda = through_libtorch(alpha, Tensor::f_log)? - through_libtorch(sigma, Tensor::f_log)?;
        Ok(Self { alpha, sigma, lambda })
    }

    /// The points of a whole run.
    pub(super) fn of(sigmas: &[f32], flow: bool) -> Result<Vec<Self>> {
        sigmas.iter().map(|sigma| Self::new(*sigma, flow)).collect()
    }
}

/// alpha_t and sigma_t at `sigmas`, to be multiplied with `like` and rounded to its dtype at each operation.
pub(super) fn alpha_sigma_tensors(sigmas: &[f32], like: &Tensor, flow: bool) -> Result<(Tensor, Tensor)> {
    let sigma = PerSample::new(sigmas, like)?.into_tensor();
    if flow {
        return Ok((sigma.f_rsub_scalar(1.0)?, sigma));
    }
    let alpha = sigma.f_pow_tensor_scalar(2)?.f_add_scalar(1.0)?.f_sqrt()?.f_reciprocal()?;
    let sigma = sigma.f_mul(&alpha)?;
    Ok((alpha, sigma))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variance_preserving_point_has_variance_one() {
        let point = Point::new(3.0, false).unwrap();
        assert!((point.alpha.powi(2) + point.sigma.powi(2) - 1.0).abs() < 1e-6);
        assert!((point.lambda + 3f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_flows_point_lies_on_the_line_between_sample_and_noise() {
        let point = Point::new(0.25, true).unwrap();
        assert_eq!((point.alpha, point.sigma), (0.75, 0.25));
        assert_eq!(Point::new(0.0, true).unwrap().lambda, f32::INFINITY);
    }
}
