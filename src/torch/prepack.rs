//! Convolutions whose weights stay as oneDNN wants them.

use super::ffi::prepack::RawPacked;
use crate::error::Result;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tch::Tensor;

/// A convolution's weight in oneDNN's own layout, kept from one call to the next.
///
/// libtorch lays the weight out anew in each call on the CPU. Kept, the result is the same to the bit, and what it costs
/// is a second copy of the weight. It is made for inputs of one shape, and anew for another shape or weight.
#[derive(Default)]
pub struct PackedConv2d(Mutex<Option<Arc<RawPacked>>>);

// What is packed at the moment says nothing of how the convolution computes.
impl fmt::Debug for PackedConv2d {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PackedConv2d").finish_non_exhaustive()
    }
}

impl PackedConv2d {
    /// The convolution of `input`, with `stride` and `padding` the same both ways; and whether the weight was laid out anew
    /// for it. None where libtorch would not use oneDNN for it: on a GPU, for a dtype that the processor has no
    /// instructions for, for some kernels of 1; and while a trace or autograd watches.
    ///
    /// # Shapes
    /// `input` `[batch, inputs, height, width]`, `weight` `[outputs, inputs, kernel, kernel]`, `bias` `[outputs]`; the
    /// result is `[batch, outputs, height', width']`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where there is no room.
    pub fn conv2d(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: i64,
        padding: i64,
    ) -> Result<Option<(Tensor, bool)>> {
        let known = self.packed();
        let (packed, anew) = match known {
            Some(known) if known.fits(input, weight, bias)? => (known, false),
            // What no longer fits makes room first.
            _ => {
                drop(known);
                self.clear();
                let Some(packed) = RawPacked::new(input, weight, bias, stride, padding)? else { return Ok(None) };
                let packed = Arc::new(packed);
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(packed.clone());
                (packed, true)
            }
        };
        Ok(packed.run(input, bias)?.map(|output| (output, anew)))
    }

    fn packed(&self) -> Option<Arc<RawPacked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the copy.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the copy takes; 0 where there is none.
    #[must_use]
    pub fn bytes(&self) -> i64 {
        self.packed().map_or(0, |packed| packed.bytes())
    }
}
