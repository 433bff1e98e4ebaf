//! Calls of `shim/memory.cpp`.

use super::{Message, checked};
use crate::error::Result;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use tch::Tensor;

unsafe extern "C" {
    fn tds_memory_track(out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_memory_untrack(tracker: *mut c_void);
    fn tds_memory_tracked(tracker: *mut c_void, current: *mut i64, peak: *mut i64);
    fn tds_memory_reset_peak(tracker: *mut c_void);
    fn tds_cuda_memory(index: c_int, allocated: *mut i64, peak: *mut i64, error: Message) -> c_int;
    fn tds_cuda_reset_peak_memory(index: c_int, error: Message) -> c_int;
    fn tds_is_pinned(tensor: *mut c_void, out: *mut c_int, error: Message) -> c_int;
}

/// Counts what its thread allocates on the host. It cannot leave the thread.
#[derive(Debug)]
pub(in crate::torch) struct HostTracker(*mut c_void, PhantomData<*const ()>);

impl HostTracker {
    pub(in crate::torch) fn start() -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` outlives the call.
        checked(|error| unsafe { tds_memory_track(&mut out, error) })?;
        Ok(Self(out, PhantomData))
    }

    /// Bytes above the start: now, and at most.
    pub(in crate::torch) fn get(&self) -> (i64, i64) {
        let (mut current, mut peak) = (0, 0);
        // SAFETY: the tracker lives, on this thread, and the numbers outlive the call.
        unsafe { tds_memory_tracked(self.0, &mut current, &mut peak) };
        (current, peak)
    }

    pub(in crate::torch) fn reset_peak(&self) {
        // SAFETY: the tracker lives, on this thread.
        unsafe { tds_memory_reset_peak(self.0) }
    }
}

impl Drop for HostTracker {
    fn drop(&mut self) {
        // SAFETY: made by `tds_memory_track` on this thread, given back once.
        unsafe { tds_memory_untrack(self.0) }
    }
}

/// Bytes that tensors on a CUDA device take: now, and at most since [`reset_peak_cuda_memory`].
pub(in crate::torch) fn cuda_memory(index: usize) -> Result<(i64, i64)> {
    let (mut allocated, mut peak) = (0, 0);
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: the numbers outlive the call.
    checked(|error| unsafe { tds_cuda_memory(index, &mut allocated, &mut peak, error) })?;
    Ok((allocated, peak))
}

pub(in crate::torch) fn reset_peak_cuda_memory(index: usize) -> Result<()> {
    let index = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: takes a number.
    checked(|error| unsafe { tds_cuda_reset_peak_memory(index, error) })
}

/// Whether `tensor` lies in page-locked host memory.
pub(in crate::torch) fn is_pinned(tensor: &Tensor) -> Result<bool> {
    let mut pinned = 0;
    // SAFETY: tch's pointer is an at::Tensor, alive while `tensor` is borrowed; `pinned` outlives the call.
    checked(|error| unsafe { tds_is_pinned(tensor.as_ptr().cast_mut().cast(), &mut pinned, error) })?;
    Ok(pinned != 0)
}
