//! The few NumPy and libtorch functions that schedules are laid out with, each with its original's roundings.
//!
//! diffusers computes timesteps and sigmas in NumPy, step coefficients on 0-dimensional float32 tensors. A schedule that
//! is off by one unit in the last place draws another picture, so these follow the originals operation by operation.

use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// `np.linspace(start, stop, num)`.
pub(crate) fn linspace(start: f64, stop: f64, num: usize) -> Vec<f64> {
    let intervals = num.saturating_sub(1);
    let step = (stop - start) / intervals as f64;
    (0..num)
        .map(|i| match i {
            0 => start,
            i if i == intervals => stop,
            i => i as f64 * step + start,
        })
        .collect()
}

/// `np.arange(start, 0, -step)` for a positive `step`: the second value is rounded on its own, the others follow it.
pub(super) fn arange_down(start: f64, step: f64) -> Vec<f64> {
    let length = (-start / -step).ceil().max(0.0) as usize;
    let second = start - step;
    let delta = second - start;
    (0..length).map(|i| if i == 1 { second } else { start + i as f64 * delta }).collect()
}

/// `np.interp(x, np.arange(len(values)), values)`.
pub(super) fn interp(x: f64, values: &[f32]) -> f64 {
    let last = values.len() - 1;
    let below = x.floor().clamp(0.0, last as f64);
    let at = f64::from(values[below as usize]);
    if x <= 0.0 || below as usize == last || below == x {
        return at;
    }
    let slope = f64::from(values[below as usize + 1]) - at;
    slope * (x - below) + at
}

/// `np.log` of a float32: NumPy's own polynomial (AVX2 and AVX-512), which the C library's `logf` does not always equal.
pub(super) fn log_f32(x: f32) -> f32 {
    const P: [f32; 6] = [2.589_979_2e-2, 3.808_837_8e-1, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const Q: [f32; 6] = [5.875_095_3e-3, 1.546_476_3e-1, 9.864_943e-1, 2.453_006, 2.612_677_6, 1.0];
    if !(x.is_finite() && x >= f32::MIN_POSITIVE) {
        return x.ln();
    }
    // x = mantissa * 2^exponent with the mantissa in (sqrt(1/2), sqrt(2)].
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    let y = mantissa - 1.0;
    let horner = |coefficients: [f32; 6]| coefficients.into_iter().reduce(|sum, c| sum.mul_add(y, c)).unwrap_or(0.0);
    (exponent as f32).mul_add(std::f32::consts::LN_2, horner(P) / horner(Q))
}

/// `scipy.stats.beta.ppf(p, a, a)`: where the symmetric beta distribution has put the share `p` of its mass.
///
/// Inverts I_x(a, a) by Newton's method. By symmetry only x <= 1/2 is needed, where the series
/// B_x(a, b) = x^a sum_n (1 - b)_n / n! x^n / (a + n) (DLMF 8.17.7) has positive terms and halves each time.
pub(super) fn symmetric_beta_ppf(p: f64, a: f64) -> f64 {
    let series = |x: f64| {
        let (mut sum, mut factor, mut n) = (0.0, 1.0, 0.0);
        loop {
            let term = factor / (a + n);
            if sum + term == sum {
                return sum;
            }
            sum += term;
            n += 1.0;
            factor *= (n - a) / n * x;
        }
    };
    if p > 0.5 {
        return 1.0 - symmetric_beta_ppf(1.0 - p, a);
    }
    if p <= 0.0 {
        return 0.0;
    }
    let target = p * 2.0 * 0.5f64.powf(a) * series(0.5);
    let mut x = (target * a).powf(1.0 / a).min(0.5);
    for _ in 0..100 {
        let density = x.powf(a - 1.0) * (1.0 - x).powf(a - 1.0);
        let next = (x - (x.powf(a) * series(x) - target) / density).clamp(x / 2.0, 0.5);
        if (next - x).abs() <= f64::EPSILON * x {
            return next;
        }
        x = next;
    }
    x
}

/// A function of libtorch on one float32, so that its rounding is libtorch's (Sleef's, MKL's) own.
pub(super) fn through_libtorch(
    x: f32,
    function: impl Fn(&Tensor) -> std::result::Result<Tensor, tch::TchError>,
) -> Result<f32> {
    let scalar = Tensor::f_scalar_tensor(f64::from(x), (Kind::Float, Device::Cpu))?;
    Ok(function(&scalar)?.f_double_value(&[])? as f32)
}

/// The square root as libtorch rounds it: through MKL, which is off by one unit in the last place now and then.
pub(super) fn sqrt(x: f32) -> Result<f32> {
    through_libtorch(x, Tensor::f_sqrt)
}

/// `value` rounded to `kind`, as a float32.
pub(super) fn round_to_kind(value: f32, kind: Kind) -> Result<f32> {
    if kind == Kind::Float {
        return Ok(value);
    }
    through_libtorch(value, |scalar| scalar.f_to_kind(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linspace_ends_exactly_on_its_stop() {
        assert_eq!(linspace(0.0, 999.0, 3), [0.0, 499.5, 999.0]);
        assert_eq!(linspace(5.0, 9.0, 1), [5.0]);
        assert_eq!(linspace(0.0, 1.0, 8)[7], 1.0);
    }

    #[test]
    fn arange_stops_before_zero() {
        assert_eq!(arange_down(1000.0, 250.0), [1000.0, 750.0, 500.0, 250.0]);
        assert_eq!(arange_down(1000.0, 1000.0 / 3.0).len(), 3);
    }

    #[test]
    fn interp_holds_the_ends() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!([-1.0, 0.5, 1.0, 1.5, 2.0, 7.0].map(|x| interp(x, &values)), [1.0, 1.5, 2.0, 3.0, 4.0, 4.0]);
    }

    #[test]
    fn the_logarithm_is_numpys() {
        // np.log(np.float32(0x3f486945)), the value that NumPy's comments name as its worst: 3.83 units off.
        assert_eq!(log_f32(f32::from_bits(0x3f48_6945)).to_bits(), 0xbe7a_ae7a);
        assert_eq!(log_f32(1.0), 0.0);
        assert_eq!(log_f32(0.0), f32::NEG_INFINITY);
    }

    #[test]
    fn the_beta_quantiles_are_scipys() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        let quantiles: [(f64, f64); 6] = [
            (0.001, 1.855873851745199e-05),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.5, 0.5000000000000001),
            (0.75, 0.824319621347305),
            (0.95, 0.9874455431263885),
        ];
        for (p, expected) in quantiles {
            let found = symmetric_beta_ppf(p, 0.6);
            assert!((found - expected).abs() <= 4.0 * f64::EPSILON * expected, "{p}: {found} is not {expected}");
        }
        assert_eq!((symmetric_beta_ppf(0.0, 0.6), symmetric_beta_ppf(1.0, 0.6)), (0.0, 1.0));
    }
}
