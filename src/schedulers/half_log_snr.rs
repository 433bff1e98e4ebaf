//! The variables that DPM-Solver, DEIS and UniPC solve in.
//!
//! x_t = alpha_t x_0 + sigma_t epsilon, and lambda_t = log(alpha_t / sigma_t), half the logarithm of the signal-to-noise
//! ratio (arXiv:2206.00927).

use super::arrays::{linspace, sqrt, through_libtorch};
use super::scheduling_utils::PredictionType;
use super::step_math::{PerSample, onto, predicted_x0, scaled};
use crate::error::Result;
use crate::torch::{NumberExt, TensorExt};
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

    /// The noise-free sample that a prediction at this point stands for; `level` is the run's sigma here.
    pub(super) fn x0(
        &self,
        prediction_type: PredictionType,
        output: &Tensor,
        sample: &Tensor,
        level: f32,
    ) -> Result<Tensor> {
        match prediction_type {
            PredictionType::FlowPrediction => onto(sample, scaled(-level, output)?),
            other => predicted_x0(other, output, sample, self.alpha, self.sigma),
        }
    }
}

/// The training timestep below which a run starts, so that lambda is `lambda_min` or more from there on.
pub(super) fn last_timestep(alphas_cumprod: &[f32], lambda_min: f64) -> Result<i64> {
    let train = alphas_cumprod.len() as i64;
    if lambda_min == f64::NEG_INFINITY {
        return Ok(train);
    }
    let alphas_cumprod = Tensor::f_from_slice(alphas_cumprod)?;
    let sigma_t = alphas_cumprod.subtracted_from(1.0)?.f_sqrt()?;
    let lambda_t = alphas_cumprod.f_sqrt()?.f_log()?.f_sub(&sigma_t.f_log()?)?.to_vec()?;
    let clipped = lambda_min as f32;
    Ok(train - lambda_t.iter().rev().take_while(|lambda| **lambda < clipped).count() as i64)
}

/// Timesteps and noise levels of a flow, shifted towards noise.
pub(super) fn flow_sigmas(shift: f64, train: i64, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let alphas = linspace(1.0, 1.0 / train as f64, steps + 1);
    let shifted = alphas.into_iter().map(|alpha| {
        let sigma = 1.0 - alpha;
        shift * sigma / (1.0 + (shift - 1.0) * sigma)
    });
    let mut sigmas: Vec<f64> = shifted.collect();
    sigmas.reverse();
    sigmas.pop();
    (sigmas.iter().map(|sigma| (sigma * train as f64).trunc()).collect(), sigmas)
}

/// alpha_t and sigma_t at `sigmas`, to be multiplied with `like` and rounded to its dtype at each operation.
pub(super) fn alpha_sigma_tensors(sigmas: &[f32], like: &Tensor, flow: bool) -> Result<(Tensor, Tensor)> {
    let sigma = PerSample::new(sigmas, like)?.into_tensor();
    if flow {
        return Ok((sigma.subtracted_from(1.0)?, sigma));
    }
    let alpha = sigma.raised_to(2i64)?.plus(1.0)?.f_sqrt()?.f_reciprocal()?;
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
