//! Operations on a tensor and a number, as fallible as all others.
//!
//! tch 0.24 hands a number over as a `Scalar`, which is dropped before libtorch's error is read: where such an operation
//! fails, its fallible methods (`f_mul_scalar`, `f_linspace` ...) panic. These give the error.

use super::ffi::number::{self, Operation};
use crate::error::Result;
use tch::Tensor;

/// A tensor and a number, which takes the tensor's dtype as a `float` of Python's does.
pub trait NumberExt {
    /// `self * number`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where the result has no room; [`Error::Torch`](crate::Error::Torch)
    /// for a dtype that has no such operation.
    fn times(&self, number: f64) -> Result<Tensor>;

    /// `self / number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn over(&self, number: f64) -> Result<Tensor>;

    /// `self + number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn plus(&self, number: f64) -> Result<Tensor>;

    /// `self - number`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn minus(&self, number: f64) -> Result<Tensor>;

    /// `number - self`.
    ///
    /// # Errors
    /// As [`NumberExt::times`].
    fn subtracted_from(&self, number: f64) -> Result<Tensor>;

    /// `self *= number`; another handle to `self` comes out.
    ///
    /// # Errors
    /// [`Error::Torch`](crate::Error::Torch) for a dtype that has no such operation.
    fn times_(&mut self, number: f64) -> Result<Tensor>;

    /// `self /= number`; another handle to `self` comes out.
    ///
    /// # Errors
    /// As [`NumberExt::times_`].
    fn over_(&mut self, number: f64) -> Result<Tensor>;
}

impl NumberExt for Tensor {
    fn times(&self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::Mul, number)
    }

    fn over(&self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::Div, number)
    }

    fn plus(&self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::Add, number)
    }

    fn minus(&self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::Sub, number)
    }

    fn subtracted_from(&self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::Rsub, number)
    }

    fn times_(&mut self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::MulInPlace, number)
    }

    fn over_(&mut self, number: f64) -> Result<Tensor> {
        number::with_number(self, Operation::DivInPlace, number)
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
        for error in [eighth.times(2.0), eighth.over(2.0), eighth.plus(2.0), linspace(0.0, 1e300, 3)] {
            assert!(matches!(error, Err(Error::Torch(_) | Error::Unsupported(_))), "{error:?}");
        }
        let huge = Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand([1 << 50], false);
        assert!(matches!(huge.times(2.0), Err(Error::OutOfMemory(_))));
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
        let twice = &x * 2.0;
        same(x.times_(2.0), twice.shallow_clone());
        same(x.over_(4.0), twice / 4.0);
    }
}
