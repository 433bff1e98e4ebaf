//! Convolutions whose weights stay in oneDNN's own layout.
#![allow(unsafe_code)]

use super::{Message, checked};
use crate::error::Result;
use std::ffi::{c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn tds_conv2d_pack(
        input: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        stride: i64,
        padding: i64,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_conv2d_packed_fits(
        packed: *mut c_void,
        input: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        out: *mut c_int,
        error: Message,
    ) -> c_int;
    fn tds_conv2d_packed_run(
        packed: *mut c_void,
        input: *mut c_void,
        bias: *mut c_void,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_conv2d_packed_bytes(packed: *mut c_void) -> i64;
    fn tds_conv2d_packed_free(packed: *mut c_void);
}

/// A weight as oneDNN wants it, for inputs of one shape.
#[derive(Debug)]
pub(in crate::torch) struct RawPacked(*mut c_void);

// SAFETY: nothing changes what is packed after it is made, and libtorch lets any thread run it.
unsafe impl Send for RawPacked {}
// SAFETY: as above.
unsafe impl Sync for RawPacked {}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn pointer_or_null(tensor: Option<&Tensor>) -> *mut c_void {
    tensor.map_or(std::ptr::null_mut(), pointer)
}

impl RawPacked {
    /// None while a trace or autograd watches.
    pub(in crate::torch) fn new(
        input: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: i64,
        padding: i64,
    ) -> Result<Option<Self>> {
        let (input, weight, bias, mut out) =
            (pointer(input), pointer(weight), pointer_or_null(bias), std::ptr::null_mut());
        // SAFETY: tch's pointers are at::Tensors, alive while they are borrowed; the bias may be null.
        checked(|error| unsafe { tds_conv2d_pack(input, weight, bias, stride, padding, &mut out, error) })?;
        Ok((!out.is_null()).then_some(Self(out)))
    }

    pub(in crate::torch) fn fits(&self, input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<bool> {
        let (input, weight, bias, mut fits) = (pointer(input), pointer(weight), pointer_or_null(bias), 0);
        // SAFETY: `self` is what `tds_conv2d_pack` made; the others are as there.
        checked(|error| unsafe { tds_conv2d_packed_fits(self.0, input, weight, bias, &mut fits, error) })?;
        Ok(fits != 0)
    }

    /// None where libtorch convolves such inputs by something else than oneDNN.
    pub(in crate::torch) fn run(&self, input: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
        let (input, bias, mut out) = (pointer(input), pointer_or_null(bias), std::ptr::null_mut());
        // SAFETY: as above.
        checked(|error| unsafe { tds_conv2d_packed_run(self.0, input, bias, &mut out, error) })?;
        // SAFETY: what the shim has put there is a new at::Tensor, which is what tch wraps and frees.
        Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out.cast()) }))
    }

    pub(in crate::torch) fn bytes(&self) -> i64 {
        // SAFETY: as above.
        unsafe { tds_conv2d_packed_bytes(self.0) }
    }
}

impl Drop for RawPacked {
    fn drop(&mut self) {
        // SAFETY: made by `tds_conv2d_pack`, freed once.
        unsafe { tds_conv2d_packed_free(self.0) }
    }
}
