//! Scopes in which nothing is recorded.
#![allow(unsafe_code)]

#[cfg(feature = "scoped-allocator")]
use super::{Message, checked};
use std::ffi::c_void;
use std::marker::PhantomData;

#[cfg(feature = "scoped-allocator")]
type AllocateAligned = unsafe extern "C" fn(usize, usize) -> *mut c_void;
#[cfg(feature = "scoped-allocator")]
type Free = unsafe extern "C" fn(*mut c_void);
#[cfg(feature = "scoped-allocator")]
type Owns = unsafe extern "C" fn(*const c_void) -> bool;

unsafe extern "C" {
    #[cfg(feature = "scoped-allocator")]
    fn tds_scoped_allocator_install(
        allocate: AllocateAligned,
        free: Free,
        owns: Owns,
        error: Message,
    ) -> std::ffi::c_int;
    /// mimalloc's own; whether a pointer came from it.
    #[cfg(feature = "scoped-allocator")]
    fn mi_is_in_heap_region(pointer: *const c_void) -> bool;
    fn tds_inference_enter() -> *mut c_void;
    fn tds_inference_leave(scope: *mut c_void);
}

/// Has threads within a scope allocate by mimalloc.
#[cfg(feature = "scoped-allocator")]
pub(in crate::torch) fn install_allocator() -> crate::error::Result<()> {
    let (allocate, free) = (libmimalloc_sys::mi_malloc_aligned, libmimalloc_sys::mi_free);
    // SAFETY: the functions are mimalloc's, any thread may call them, and what the first gives the others take.
    checked(|error| unsafe { tds_scoped_allocator_install(allocate, free, mi_is_in_heap_region, error) })
}

/// The scope that a thread is in; it stays on the thread.
#[derive(Debug)]
pub(in crate::torch) struct RawScope(*mut c_void, PhantomData<*const ()>);

impl RawScope {
    pub(in crate::torch) fn enter() -> Self {
        // SAFETY: the call needs nothing.
        Self(unsafe { tds_inference_enter() }, PhantomData)
    }
}

impl Drop for RawScope {
    fn drop(&mut self) {
        // SAFETY: the pointer is `enter`'s, and the scope has not left its thread.
        unsafe { tds_inference_leave(self.0) }
    }
}
