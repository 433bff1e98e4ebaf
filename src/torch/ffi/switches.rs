//! Switches of the whole process.
#![allow(unsafe_code)]

use super::{Message, checked, tensor};
use crate::error::Result;
use std::ffi::{c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn tds_switch_get(which: c_int, out: *mut c_int, error: Message) -> c_int;
    fn tds_switch_set(which: c_int, on: c_int, error: Message) -> c_int;
    fn tds_matmul_precision_get(out: *mut c_int, error: Message) -> c_int;
    fn tds_matmul_precision_set(precision: c_int, error: Message) -> c_int;
    fn tds_threads_get(interop: c_int, out: *mut c_int, error: Message) -> c_int;
    fn tds_threads_set(interop: c_int, threads: c_int, error: Message) -> c_int;
    fn tds_sdp_get(backend: c_int, out: *mut c_int, error: Message) -> c_int;
    fn tds_sdp_set(backend: c_int, on: c_int, error: Message) -> c_int;
    fn tds_sdp_order_get(order: *mut i64, error: Message) -> c_int;
    fn tds_sdp_order_set(order: *const i64, error: Message) -> c_int;
    fn tds_sdp_attention(
        query: *mut c_void,
        key: *mut c_void,
        value: *mut c_void,
        mask: *mut c_void,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
}

/// How many kernels of attention libtorch knows: `at::num_sdp_backends`.
pub(in crate::torch) const BACKENDS: usize = 5;

fn number(call: impl FnOnce(*mut c_int, Message) -> c_int) -> Result<c_int> {
    let mut out = 0;
    checked(|error| call(&mut out, error))?;
    Ok(out)
}

pub(in crate::torch) fn get(which: c_int) -> Result<bool> {
    // SAFETY: only writes its out-pointers.
    Ok(number(|out, error| unsafe { tds_switch_get(which, out, error) })? != 0)
}

pub(in crate::torch) fn set(which: c_int, on: bool) -> Result<()> {
    // SAFETY: takes numbers.
    checked(|error| unsafe { tds_switch_set(which, on.into(), error) })
}

pub(in crate::torch) fn matmul_precision() -> Result<c_int> {
    // SAFETY: only writes its out-pointers.
    number(|out, error| unsafe { tds_matmul_precision_get(out, error) })
}

pub(in crate::torch) fn set_matmul_precision(precision: c_int) -> Result<()> {
    // SAFETY: takes numbers.
    checked(|error| unsafe { tds_matmul_precision_set(precision, error) })
}

pub(in crate::torch) fn threads(interop: bool) -> Result<c_int> {
    // SAFETY: only writes its out-pointers.
    number(|out, error| unsafe { tds_threads_get(interop.into(), out, error) })
}

pub(in crate::torch) fn set_threads(interop: bool, threads: c_int) -> Result<()> {
    // SAFETY: takes numbers.
    checked(|error| unsafe { tds_threads_set(interop.into(), threads, error) })
}

pub(in crate::torch) fn sdp(backend: c_int) -> Result<bool> {
    // SAFETY: only writes its out-pointers.
    Ok(number(|out, error| unsafe { tds_sdp_get(backend, out, error) })? != 0)
}

pub(in crate::torch) fn set_sdp(backend: c_int, on: bool) -> Result<()> {
    // SAFETY: takes numbers.
    checked(|error| unsafe { tds_sdp_set(backend, on.into(), error) })
}

pub(in crate::torch) fn sdp_order() -> Result<[i64; BACKENDS]> {
    let mut order = [0; BACKENDS];
    // SAFETY: writes at::num_sdp_backends numbers, which the shim holds to be as many as `order` has.
    checked(|error| unsafe { tds_sdp_order_get(order.as_mut_ptr(), error) })?;
    Ok(order)
}

pub(in crate::torch) fn set_sdp_order(order: &[i64; BACKENDS]) -> Result<()> {
    // SAFETY: reads as many numbers as `order` holds.
    checked(|error| unsafe { tds_sdp_order_set(order.as_ptr(), error) })
}

/// Attention whose error says what each kernel lacks.
pub(in crate::torch) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast();
    let mask = mask.map_or(std::ptr::null_mut(), pointer);
    // SAFETY: tch's pointers are at::Tensors, alive while they are borrowed; the mask may be null.
    tensor(|out, error| unsafe { tds_sdp_attention(pointer(query), pointer(key), pointer(value), mask, out, error) })
}
