//! Streams, events and pinned memory.
#![allow(unsafe_code)]

use super::{Message, checked};
use crate::error::Result;
use std::ffi::{c_int, c_void};
use tch::Tensor;

/// A stream as libtorch packs it; the number of a `c10::DeviceType` is its last part.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::torch) struct RawStream {
    id: i64,
    pub(in crate::torch) index: i16,
    device_type: i16,
}

unsafe extern "C" {
    fn tds_stream_from_pool(device_type: i16, index: i16, out: *mut RawStream, error: Message) -> c_int;
    fn tds_stream_current(device_type: i16, index: i16, out: *mut RawStream, error: Message) -> c_int;
    fn tds_stream_exchange(stream: RawStream, out: *mut RawStream, error: Message) -> c_int;
    fn tds_stream_synchronize(stream: RawStream, error: Message) -> c_int;
    fn tds_stream_query(stream: RawStream, out: *mut c_int, error: Message) -> c_int;
    fn tds_event_new(device_type: i16, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_event_free(event: *mut c_void);
    fn tds_event_record(event: *mut c_void, stream: RawStream, error: Message) -> c_int;
    fn tds_event_block(event: *mut c_void, stream: RawStream, error: Message) -> c_int;
    fn tds_event_synchronize(event: *mut c_void, error: Message) -> c_int;
    fn tds_event_query(event: *mut c_void, out: *mut c_int, error: Message) -> c_int;
    fn tds_record_stream(tensor: *mut c_void, stream: RawStream, error: Message) -> c_int;
    fn tds_copy(to: *mut c_void, from: *mut c_void, non_blocking: c_int, error: Message) -> c_int;
    fn tds_pin(address: *mut c_void, bytes: usize, error: Message) -> c_int;
    fn tds_unpin(address: *mut c_void, error: Message) -> c_int;
    fn tds_trim();
}

/// The number of CUDA among the `c10::DeviceType`s.
const CUDA: i16 = 1;

impl RawStream {
    fn written(call: impl FnOnce(*mut Self, Message) -> c_int) -> Result<Self> {
        let mut out = Self { id: 0, index: 0, device_type: CUDA };
        checked(|error| call(&mut out, error))?;
        Ok(out)
    }

    pub(in crate::torch) fn from_pool(index: i16) -> Result<Self> {
        // SAFETY: `out` outlives the call.
        Self::written(|out, error| unsafe { tds_stream_from_pool(CUDA, index, out, error) })
    }

    pub(in crate::torch) fn current(index: i16) -> Result<Self> {
        // SAFETY: `out` outlives the call.
        Self::written(|out, error| unsafe { tds_stream_current(CUDA, index, out, error) })
    }

    /// Makes it the current one, and gives the one before.
    pub(in crate::torch) fn exchange(self) -> Result<Self> {
        // SAFETY: `out` outlives the call.
        Self::written(|out, error| unsafe { tds_stream_exchange(self, out, error) })
    }

    pub(in crate::torch) fn synchronize(self) -> Result<()> {
        // SAFETY: takes a value.
        checked(|error| unsafe { tds_stream_synchronize(self, error) })
    }

    pub(in crate::torch) fn is_idle(self) -> Result<bool> {
        let mut idle = 0;
        // SAFETY: `idle` outlives the call.
        checked(|error| unsafe { tds_stream_query(self, &mut idle, error) })?;
        Ok(idle != 0)
    }
}

/// A `c10::Event`.
#[derive(Debug)]
pub(in crate::torch) struct RawEvent(*mut c_void);

// SAFETY: a c10::Event is a handle that belongs to no thread; it is not Sync, so no two threads use it at once.
unsafe impl Send for RawEvent {}

impl RawEvent {
    pub(in crate::torch) fn new() -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` outlives the call.
        checked(|error| unsafe { tds_event_new(CUDA, &mut out, error) })?;
        Ok(Self(out))
    }

    pub(in crate::torch) fn record(&mut self, stream: RawStream) -> Result<()> {
        // SAFETY: the pointer is a live c10::Event.
        checked(|error| unsafe { tds_event_record(self.0, stream, error) })
    }

    pub(in crate::torch) fn block(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the pointer is a live c10::Event.
        checked(|error| unsafe { tds_event_block(self.0, stream, error) })
    }

    pub(in crate::torch) fn synchronize(&self) -> Result<()> {
        // SAFETY: the pointer is a live c10::Event.
        checked(|error| unsafe { tds_event_synchronize(self.0, error) })
    }

    pub(in crate::torch) fn is_reached(&self) -> Result<bool> {
        let mut reached = 0;
        // SAFETY: the pointer is a live c10::Event and `reached` outlives the call.
        checked(|error| unsafe { tds_event_query(self.0, &mut reached, error) })?;
        Ok(reached != 0)
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: made by `new c10::Event`, freed once.
        unsafe { tds_event_free(self.0) }
    }
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

pub(in crate::torch) fn record_stream(tensor: &Tensor, stream: RawStream) -> Result<()> {
    // SAFETY: tch's pointer is an at::Tensor, alive while `tensor` is borrowed.
    checked(|error| unsafe { tds_record_stream(pointer(tensor), stream, error) })
}

pub(in crate::torch) fn copy(to: &Tensor, from: &Tensor, non_blocking: bool) -> Result<()> {
    // SAFETY: tch's pointers are at::Tensors, alive while they are borrowed.
    checked(|error| unsafe { tds_copy(pointer(to), pointer(from), non_blocking.into(), error) })
}

/// Pins the `bytes` bytes at the beginning of `host`, which has to stay alive until [`unpin`].
pub(in crate::torch) fn pin(host: &Tensor, bytes: usize) -> Result<()> {
    // SAFETY: the memory belongs to `host`, a tensor on the host that holds as many bytes.
    checked(|error| unsafe { tds_pin(host.data_ptr(), bytes, error) })
}

/// Undoes [`pin`].
pub(in crate::torch) fn unpin(host: &Tensor) -> Result<()> {
    // SAFETY: the memory belongs to `host` and was pinned before.
    checked(|error| unsafe { tds_unpin(host.data_ptr(), error) })
}

/// Gives freed memory back to the operating system.
pub(in crate::torch) fn trim() {
    // SAFETY: takes nothing, and touches nothing that is in use.
    unsafe { tds_trim() }
}
