//! Convolution in fewer multiplications.

use super::ffi;
use crate::error::Result;
use tch::Tensor;

/// The twin of `conv2d` with a kernel of 3, steps of 1 and a border of 1, by Winograd's minimal filtering F(4x4, 3x3): a
/// quarter of the multiplications, in float32 on the CPU.
///
/// The result is close: within 1e-5 of its largest value. Measured against float64, it is ten times as far from the exact
/// one as `conv2d`'s is with 8 channels, and as far with 1280. It has its channels last in memory, and so should `input` and
/// `weight` have, which are laid out anew otherwise. None where this way does not suit:
/// on another device or for another dtype, for channels that are no multiple of 8, for pictures of fewer than 32 tiles
/// of 4 x 4 pixels together, and while a trace is recorded.
///
/// Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", <https://arxiv.org/abs/1509.09308>.
///
/// # Shapes
/// `input` `[batch, inputs, height, width]`, `weight` `[outputs, inputs, 3, 3]`, `bias` `[outputs]`; the result is
/// `[batch, outputs, height, width]`.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where there is no room.
pub fn conv2d_winograd(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    ffi::conv2d_winograd(input, weight, bias)
}
