//! Operations on a tensor and a number, as fallible as all others.
//!
//! tch 0.24 hands a number over as a `Scalar`, which is dropped before libtorch's error is read: where such an operation
//! fails, its fallible methods (`f_mul_scalar`, `f_linspace` ...) panic. These give the error.

use super::ffi::number::{self, Operation};
use crate::error::Result;
use tch::Tensor;

/// A number beside a tensor.
///
/// As in Python, a real one takes the dtype of a tensor of real numbers, and a whole one that of any tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Python's `int`.
    Whole(i64),
    /// Python's `float`.
    Real(f64),
}

impl From<i64> for Number {
    fn from(whole: i64) -> Self {
        Self::Whole(whole)
    }
}

impl From<f64> for Number {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

/// A tensor and a [`Number`].
pub trait NumberExt {
    /// `self * number`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where the result has no room; [`Error::Torch`](crate::Error::Torch)
    /// for a dtype that has no such operation.
    fn times(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `self / number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn over(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `self + number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn plus(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `self - number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn minus(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `number - self`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn subtracted_from(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `self ** number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn raised_to(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// Where `self > number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn is_above(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// Where `self >= number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn is_at_least(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// Where `self < number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn is_below(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// Where `self == number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn is_equal_to(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `number` where `self` is more than that.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn no_more_than(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `number` where `self` is less than that.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn no_less_than(&self, number: impl Into<Number>) -> Result<Tensor>;

    /// `min` where `self` is less, and `max` where it is more.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn clamped(&self, min: f64, max: f64) -> Result<Tensor>;

    /// `self *= number`; another handle to `self` comes out.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) for a dtype that has no such operation.
    fn times_(&mut self, number: impl Into<Number>) -> Result<Tensor>;

    /// `self /= number`; another handle to `self` comes out.
    ///
    /// # Errors
    /// As [`NumberExt::times_`].
    fn over_(&mut self, number: impl Into<Number>) -> Result<Tensor>;
}

impl NumberExt for Tensor {
    fn times(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Mul, number.into())
    }

    fn over(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Div, number.into())
    }

    fn plus(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Add, number.into())
    }

    fn minus(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Sub, number.into())
    }

    fn subtracted_from(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Rsub, number.into())
    }

    fn raised_to(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Pow, number.into())
    }

    fn is_above(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Greater, number.into())
    }

    fn is_at_least(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::GreaterOrEqual, number.into())
    }

    fn is_below(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Less, number.into())
    }

    fn is_equal_to(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::Equal, number.into())
    }

    fn no_more_than(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::ClampMax, number.into())
    }

    fn no_less_than(&self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::ClampMin, number.into())
    }

    fn clamped(&self, min: f64, max: f64) -> Result<Tensor> {
        number::clamp(self, min, max)
    }

    fn times_(&mut self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::MulInPlace, number.into())
    }

    fn over_(&mut self, number: impl Into<Number>) -> Result<Tensor> {
        number::with_number(self, Operation::DivInPlace, number.into())
    }
}

/// `beta * bias + alpha * left @ right`, of batches of matrices.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where the result has no room; [`Error::Torch`](crate::Error::Torch) for
/// shapes that do not fit.
pub fn baddbmm(bias: &Tensor, left: &Tensor, right: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
    number::baddbmm(bias, left, right, beta, alpha)
}

/// `steps` numbers from `start` to `end`, both included, in float32 on the CPU.
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) for numbers beyond float32.
pub fn linspace(start: f64, end: f64, steps: i64) -> Result<Tensor> {
    number::linspace(start, end, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::torch::TensorExt;
    use tch::{Device, Kind};

    #[test]
    fn a_failing_operation_on_a_number_is_an_error_and_no_panic() {
        let eighth = Tensor::zeros([2], (Kind::Float, Device::Cpu)).to_kind(Kind::Float8e4m3fn);
        for error in [eighth.times(2.0), eighth.over(2i64), eighth.plus(2.0), linspace(0.0, 1e300, 3)] {
            assert!(matches!(error, Err(Error::Torch(_) | Error::Unsupported(_))), "{error:?}");
        }
        let huge = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 50], false);
        for error in [huge.times(2.0), huge.is_above(2i64), huge.clamped(0.0, 1.0), huge.raised_to(2.0)] {
            assert!(matches!(error, Err(Error::OutOfMemory(_))), "{error:?}");
        }
    }

    #[test]
    fn the_results_are_those_of_libtorchs_own_operators() {
        let mut x = Tensor::from_slice(&[0.1f32, -3.0, 7.7]);
        let same = |ours: Result<Tensor>, theirs: Tensor| {
            assert_eq!(ours.unwrap().to_vec().unwrap(), theirs.to_vec().unwrap());
        };
        same(x.times(0.3), &x * 0.3);
        same(x.over(0.3), &x / 0.3);
        same(x.plus(0.3), &x + 0.3);
        same(x.minus(0.3), &x - 0.3);
        same(x.subtracted_from(0.3), 0.3 - &x);
        same(linspace(0.25, 3.0, 9), Tensor::linspace(0.25, 3.0, 9, (Kind::Float, Device::Cpu)));
        same(x.raised_to(2i64), x.pow_tensor_scalar(2));
        same(x.raised_to(3.0), x.pow_tensor_scalar(3.0));
        same(x.clamped(-1.0, 1.0), x.clamp(-1.0, 1.0));
        same(x.no_more_than(1.0), x.clamp_max(1.0));
        same(x.no_less_than(1.0), x.clamp_min(1.0));
        let twice = &x * 2.0;
        same(x.times_(2.0), twice.shallow_clone());
        same(x.over_(4.0), twice / 4.0);
    }

    #[test]
    fn whole_numbers_leave_whole_tensors_whole() {
        let x = Tensor::from_slice(&[-3i64, 0, 5, (1 << 60) + 1]);
        let same = |ours: Result<Tensor>, theirs: Tensor| assert!(ours.unwrap().equal(&theirs));
        same(x.times(3i64), &x * 3);
        same(x.plus(4i64), &x + 4);
        same(x.no_more_than(1i64), x.clamp_max(1));
        same(x.is_above(0i64), x.gt(0));
        same(x.is_at_least(0i64), x.ge(0));
        same(x.is_below(1i64 << 60), x.lt(1 << 60));
        same(x.is_equal_to((1i64 << 60) + 1), x.eq((1 << 60) + 1));
        assert_eq!(x.times(1i64).unwrap().kind(), Kind::Int64);
    }
}
