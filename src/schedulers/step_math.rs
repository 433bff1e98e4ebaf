//! The arithmetic of steps.
//!
//! Coefficients are float32 numbers on the host, where diffusers holds them in 0-dimensional tensors. Neither changes the
//! dtype of the result. Every function rounds after each multiplication and each addition, as diffusers' expressions do
//! (`add` with `alpha` would round once).

use super::arrays::round_to_kind;
use super::scheduling_utils::PredictionType;
use crate::error::{Error, Result};
use crate::torch::NumberExt;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// a · x, as a tensor a before x: on the CPU libtorch rounds that to the dtype of x.
pub(super) fn scaled(a: f32, x: &Tensor) -> Result<Tensor> {
    x.times(rounded_before(a, x)?)
}

/// [`scaled`] in the memory of `x`.
pub(super) fn scale(a: f32, mut x: Tensor) -> Result<Tensor> {
    x.times_(rounded_before(a, &x)?)
}

/// x · a, as a tensor a after x: libtorch reads that at the precision of the operation, float32 or more.
///
/// Not in the memory of x: `mul_` puts its scalar first, and so rounds it.
pub(super) fn times(x: &Tensor, a: f32) -> Result<Tensor> {
    x.times(f64::from(a))
}

fn rounded_before(a: f32, x: &Tensor) -> Result<f64> {
    let a = if x.device() == Device::Cpu { round_to_kind(a, x.f_kind()?)? } else { a };
    Ok(f64::from(a))
}

/// x + y, in the memory of `x` if the sum has its dtype.
pub(super) fn sum(mut x: Tensor, y: &Tensor) -> Result<Tensor> {
    let (x_kind, y_kind) = (x.f_kind()?, y.f_kind()?);
    let upcasts = x_kind == Kind::Float && matches!(y_kind, Kind::Half | Kind::BFloat16);
    Ok(if x_kind == y_kind || upcasts { x.f_add_(y)? } else { x.f_add(y)? })
}

/// a · x + b · y.
pub(super) fn axpby(a: f32, x: &Tensor, b: f32, y: &Tensor) -> Result<Tensor> {
    sum(scaled(a, x)?, &scaled(b, y)?)
}

/// x + y as torch lays it out in memory: as x, which decides how the convolutions that follow round. In the memory of `y`
/// where that is laid out alike.
pub(super) fn onto(x: &Tensor, y: Tensor) -> Result<Tensor> {
    if x.stride() == y.stride() { sum(y, x) } else { Ok(x.f_add(&y)?) }
}

/// (x - b · y) / c.
pub(super) fn remove_and_divide(x: &Tensor, b: f32, y: &Tensor, c: f32) -> Result<Tensor> {
    onto(x, scaled(-b, y)?)?.over_(f64::from(c))
}

/// (x - y) / c.
pub(super) fn difference_quotient(x: &Tensor, y: &Tensor, c: f32) -> Result<Tensor> {
    x.f_sub(y)?.over_(f64::from(c))
}

/// The noise-free sample that a prediction stands for, where x_t = `signal` · x_0 + `noise` · epsilon.
pub(super) fn predicted_x0(
    prediction_type: PredictionType,
    output: &Tensor,
    sample: &Tensor,
    signal: f32,
    noise: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Sample => Ok(output.shallow_clone()),
        PredictionType::VPrediction => axpby(signal, sample, -noise, output),
        _ => remove_and_divide(sample, noise, output, signal),
    }
}

/// The noise that a prediction stands for, in the same way.
pub(super) fn predicted_epsilon(
    prediction_type: PredictionType,
    output: &Tensor,
    sample: &Tensor,
    signal: f32,
    noise: f32,
) -> Result<Tensor> {
    match prediction_type {
        PredictionType::Sample => remove_and_divide(sample, signal, output, noise),
        PredictionType::VPrediction => axpby(signal, output, noise, sample),
        _ => Ok(output.shallow_clone()),
    }
}

/// How a predicted x_0 is kept in range.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct LimitOptions {
    pub(super) clip_sample: bool,
    pub(super) clip_sample_range: f64,
    pub(super) thresholding: bool,
    pub(super) dynamic_thresholding_ratio: f64,
    pub(super) sample_max_value: f64,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
        }
    }
}

impl LimitOptions {
    /// Thresholding comes before clipping, and in its place.
    pub(super) fn apply(&self, x0: Tensor) -> Result<Tensor> {
        if self.thresholding {
            let (ratio, max_value) = (self.dynamic_thresholding_ratio, self.sample_max_value);
            return Thresholding { ratio, max_value }.apply(&x0);
        }
        Ok(if self.clip_sample { x0.clamped(-self.clip_sample_range, self.clip_sample_range)? } else { x0 })
    }
}

/// Limits each sample to a high quantile of its own magnitudes, and scales it to [-1, 1] ("dynamic thresholding",
/// arXiv:2205.11487, section 2.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholding {
    pub(super) ratio: f64,
    pub(super) max_value: f64,
}

impl Thresholding {
    pub(super) fn apply(self, sample: &Tensor) -> Result<Tensor> {
        let kind = sample.f_kind()?;
        let upcast = if kind == Kind::Double { sample.shallow_clone() } else { sample.f_to_kind(Kind::Float)? };
        let flat = upcast.f_flatten(1, -1)?;
        let quantile = flat.f_abs()?.f_quantile_scalar(self.ratio, 1, false, "linear")?;
        let s = quantile.clamped(1.0, self.max_value)?.f_unsqueeze(1)?;
        let limited = flat.f_clamp_tensor(Some(&s.f_neg()?), Some(&s))?.f_div(&s)?;
        Ok(limited.f_view_as(sample)?.f_to_kind(kind)?)
    }
}

/// One coefficient for each sample, in the dtype and on the device of `like`, and shaped to be multiplied with it.
pub(super) struct PerSample(Tensor);

impl PerSample {
    /// # Errors
    /// [`Error::Argument`] if there are neither one value nor as many as samples.
    pub(super) fn new(values: &[f32], like: &Tensor) -> Result<Self> {
        let shape = like.size();
        let (batch, rest) = shape.split_first().unwrap_or((&1, &[]));
        if values.len() != 1 && values.len() as i64 != *batch {
            return Err(Error::Argument(format!("{} timesteps were given for a batch of {batch}", values.len())));
        }
        let column: Vec<i64> = std::iter::once(values.len() as i64).chain(rest.iter().map(|_| 1)).collect();
        Ok(Self(Tensor::f_from_slice(values)?.f_to_kind(like.f_kind()?)?.f_reshape(column)?))
    }

    /// sqrt(alpha_bar) and sqrt(1 - alpha_bar), for these alpha_bar.
    pub(super) fn signal_and_noise(self) -> Result<(Tensor, Tensor)> {
        Ok((self.0.f_sqrt()?, self.0.subtracted_from(1.0)?.f_sqrt()?))
    }

    /// The coefficients themselves.
    pub(super) fn into_tensor(self) -> Tensor {
        self.0
    }
}

/// a · x + b · y with coefficients for each sample, which lie on the host.
pub(super) fn mix(a: &Tensor, x: &Tensor, b: &Tensor, y: &Tensor) -> Result<Tensor> {
    let device = x.device();
    sum(x.f_mul(&a.f_to_device(device)?)?, &y.f_mul(&b.f_to_device(device)?)?)
}

/// sum_k rho_k · D_k, with the rho in `rho_kind`, and rounded once to the dtype of the D as a matrix product is.
pub(super) fn contract(rhos: &[f32], differences: &[Tensor], rho_kind: Kind) -> Result<Option<Tensor>> {
    let Some(first) = differences.first() else { return Ok(None) };
    let kind = first.f_kind()?;
    let mut total: Option<Tensor> = None;
    for (rho, difference) in rhos.iter().zip(differences) {
        let term = scaled(round_to_kind(*rho, rho_kind)?, &difference.f_to_kind(Kind::Float)?)?;
        total = Some(match total {
            Some(total) => sum(total, &term)?,
            None => term,
        });
    }
    Ok(total.map(|total| total.f_to_kind(kind)).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::TensorExt;

    #[test]
    fn mixed_dtypes_are_promoted_as_in_torch() {
        let half = Tensor::from_slice(&[1f32]).to_kind(Kind::BFloat16);
        let full = Tensor::from_slice(&[2f32.powi(-20)]);
        assert_eq!(axpby(1.0, &half, 1.0, &full).unwrap().kind(), Kind::Float);
        assert_eq!(axpby(1.0, &full, 1.0, &half).unwrap().to_vec().unwrap(), [1.0 + 2f32.powi(-20)]);
        assert_eq!(axpby(1.0, &half, 1.0, &half).unwrap().kind(), Kind::BFloat16);
    }

    #[test]
    fn sums_are_laid_out_as_their_first_term() {
        let rows = Tensor::ones([1, 3, 4, 5], (Kind::Float, Device::Cpu));
        let last = Tensor::ones([1, 4, 5, 3], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
        for (x, y) in [(&rows, &last), (&last, &rows), (&last, &last)] {
            assert_eq!(onto(x, y.copy()).unwrap().stride(), x.f_add(y).unwrap().stride());
            assert_eq!(remove_and_divide(x, 0.5, y, 2.0).unwrap().stride(), x.f_sub(y).unwrap().stride());
        }
        assert_eq!(remove_and_divide(&last, 0.5, &rows, 2.0).unwrap().to_vec().unwrap(), [0.25; 60]);
    }

    #[test]
    fn thresholding_leaves_small_samples_and_scales_large_ones() {
        let sample = Tensor::from_slice(&[0.5f32, -0.25, 8.0, -4.0]).reshape([2, 1, 2]);
        let limited = Thresholding { ratio: 1.0, max_value: 100.0 }.apply(&sample).unwrap();
        assert_eq!(limited.to_vec().unwrap(), [0.5, -0.25, 1.0, -0.5]);
    }

    #[test]
    fn coefficients_must_fit_the_batch() {
        let sample = Tensor::from_slice(&[0f32; 6]).reshape([2, 3]);
        assert!(PerSample::new(&[1.0; 3], &sample).is_err());
        assert_eq!(PerSample::new(&[1.0; 2], &sample).unwrap().into_tensor().size(), [2, 1]);
    }
}
