//! CUDA graphs.
#![allow(unsafe_code)]

use super::{Message, checked};
use crate::error::Result;
use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn tds_graph_pool(pool: *mut u64, error: Message) -> c_int;
    fn tds_graph_new(index: i16, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_graph_free(graph: *mut c_void);
    fn tds_graph_begin(graph: *mut c_void, pool: *const u64, error: Message) -> c_int;
    fn tds_graph_end(graph: *mut c_void, error: Message) -> c_int;
    fn tds_graph_abandon(graph: *mut c_void, error: Message) -> c_int;
    fn tds_graph_replay(graph: *mut c_void, error: Message) -> c_int;
}

/// The name of a pool of memory.
#[derive(Debug)]
pub(in crate::torch) struct PoolId([u64; 2]);

impl PoolId {
    /// One that no graph has yet.
    pub(in crate::torch) fn new() -> Result<Self> {
        let mut pool = [0; 2];
        // SAFETY: two numbers are written, and `pool` outlives the call.
        checked(|error| unsafe { tds_graph_pool(pool.as_mut_ptr(), error) })?;
        Ok(Self(pool))
    }
}

/// An `at::cuda::CUDAGraph`.
#[derive(Debug)]
pub(in crate::torch) struct RawGraph {
    graph: *mut c_void,
    capturing: bool,
}

// SAFETY: a graph belongs to no thread once it is captured; one that is being captured does not leave its thread.
unsafe impl Send for RawGraph {}

impl RawGraph {
    /// On CUDA device number `index`.
    pub(in crate::torch) fn new(index: i16) -> Result<Self> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: `graph` outlives the call.
        checked(|error| unsafe { tds_graph_new(index, &mut graph, error) })?;
        Ok(Self { graph, capturing: false })
    }

    /// Begins to record what the current stream is given.
    pub(in crate::torch) fn begin(&mut self, pool: &PoolId) -> Result<()> {
        // SAFETY: the pointer is a live graph, and two numbers are read.
        checked(|error| unsafe { tds_graph_begin(self.graph, pool.0.as_ptr(), error) })?;
        self.capturing = true;
        Ok(())
    }

    /// Ends what [`RawGraph::begin`] began, on the same stream.
    pub(in crate::torch) fn end(&mut self) -> Result<()> {
        // SAFETY: the pointer is a live graph.
        checked(|error| unsafe { tds_graph_end(self.graph, error) })?;
        self.capturing = false;
        Ok(())
    }

    pub(in crate::torch) fn replay(&self) -> Result<()> {
        // SAFETY: the pointer is a live graph.
        checked(|error| unsafe { tds_graph_replay(self.graph, error) })
    }
}

impl Drop for RawGraph {
    /// On the stream of the capture if that did not come to its end.
    fn drop(&mut self) {
        if self.capturing {
            // SAFETY: the pointer is a live graph.
            if let Err(error) = checked(|error| unsafe { tds_graph_abandon(self.graph, error) }) {
                tracing::warn!("{error}");
            }
        }
        // SAFETY: made by `tds_graph_new`, freed once.
        unsafe { tds_graph_free(self.graph) }
    }
}
