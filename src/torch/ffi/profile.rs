//! Calls of `shim/profile.cpp` and `shim/synchronization.cpp`.
#![allow(unsafe_code)]

use super::{Message, checked, string};
use crate::error::Result;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

unsafe extern "C" {
    fn tds_profile_start(out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_profile_read(profile: *mut c_void, out: Message, error: Message) -> c_int;
    fn tds_profile_stop(profile: *mut c_void);
    fn tds_synchronizations_start(out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_synchronizations_stop(watch: *mut c_void, count: *mut i64);
}

/// Watches the operators of its thread, which it cannot leave.
#[derive(Debug)]
pub(in crate::torch) struct RawProfile(*mut c_void, PhantomData<*const ()>);

impl RawProfile {
    pub(in crate::torch) fn start() -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` outlives the call.
        checked(|error| unsafe { tds_profile_start(&mut out, error) })?;
        Ok(Self(out, PhantomData))
    }

    /// A line for each operator: calls, nanoseconds, name.
    pub(in crate::torch) fn read(&self) -> Result<String> {
        // SAFETY: the profile lives, on this thread.
        string(|out, error| unsafe { tds_profile_read(self.0, out, error) })
    }
}

impl Drop for RawProfile {
    fn drop(&mut self) {
        // SAFETY: made by `tds_profile_start` on this thread, stopped once.
        unsafe { tds_profile_stop(self.0) }
    }
}

/// Counts how often its thread waits for a CUDA device.
#[derive(Debug)]
pub(in crate::torch) struct RawSynchronizations(*mut c_void, PhantomData<*const ()>);

impl RawSynchronizations {
    pub(in crate::torch) fn start() -> Result<Self> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` outlives the call.
        checked(|error| unsafe { tds_synchronizations_start(&mut out, error) })?;
        Ok(Self(out, PhantomData))
    }

    /// Ends the count, and gives it.
    pub(in crate::torch) fn stop(mut self) -> i64 {
        self.end()
    }

    fn end(&mut self) -> i64 {
        let mut count = 0;
        let watch = std::mem::replace(&mut self.0, std::ptr::null_mut());
        if !watch.is_null() {
            // SAFETY: made by `tds_synchronizations_start` on this thread, and forgotten here.
            unsafe { tds_synchronizations_stop(watch, &mut count) };
        }
        count
    }
}

impl Drop for RawSynchronizations {
    fn drop(&mut self) {
        self.end();
    }
}
