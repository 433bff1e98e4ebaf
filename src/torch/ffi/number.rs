//! Operations on a tensor and a number.
#![allow(unsafe_code)]

use super::{Message, tensor};
use crate::error::Result;
use crate::torch::number::Number;
use std::ffi::{c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn tds_with_number(
        tensor: *mut c_void,
        operation: c_int,
        is_whole: c_int,
        whole: i64,
        real: f64,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_clamp(tensor: *mut c_void, min: f64, max: f64, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_baddbmm(
        bias: *mut c_void,
        left: *mut c_void,
        right: *mut c_void,
        beta: f64,
        alpha: f64,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_linspace(start: f64, end: f64, steps: i64, out: *mut *mut c_void, error: Message) -> c_int;
}

/// As `shim/tensor.cpp` numbers them.
#[derive(Clone, Copy, Debug)]
pub(in crate::torch) enum Operation {
    Mul = 0,
    Div = 1,
    Add = 2,
    Sub = 3,
    Rsub = 4,
    MulInPlace = 5,
    DivInPlace = 6,
    Pow = 7,
    Greater = 8,
    GreaterOrEqual = 9,
    Less = 10,
    Equal = 11,
    ClampMax = 12,
    ClampMin = 13,
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

pub(in crate::torch) fn with_number(own: &Tensor, operation: Operation, number: Number) -> Result<Tensor> {
    let (is_whole, whole, real) = match number {
        Number::Whole(whole) => (1, whole, 0.0),
        Number::Real(real) => (0, 0, real),
    };
    let (own, operation) = (pointer(own), operation as c_int);
    // SAFETY: tch's pointer is an at::Tensor, alive while `own` is borrowed.
    tensor(|out, error| unsafe { tds_with_number(own, operation, is_whole, whole, real, out, error) })
}

pub(in crate::torch) fn clamp(own: &Tensor, min: f64, max: f64) -> Result<Tensor> {
    // SAFETY: as above.
    tensor(|out, error| unsafe { tds_clamp(pointer(own), min, max, out, error) })
}

pub(in crate::torch) fn baddbmm(bias: &Tensor, left: &Tensor, right: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
    // SAFETY: as above, for three tensors.
    tensor(|out, error| unsafe { tds_baddbmm(pointer(bias), pointer(left), pointer(right), beta, alpha, out, error) })
}

pub(in crate::torch) fn linspace(start: f64, end: f64, steps: i64) -> Result<Tensor> {
    // SAFETY: takes numbers, and only writes its out-pointers.
    tensor(|out, error| unsafe { tds_linspace(start, end, steps, out, error) })
}
