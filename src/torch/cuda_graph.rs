//! CUDA graphs: work that is given to a device as a whole.
//!
//! Twins of `torch.cuda.CUDAGraph`, `torch.cuda.graph` and `torch.cuda.graph_pool_handle` of torch 2.11. Launching each
//! kernel by itself takes the host a few microseconds; a graph of a thousand kernels is launched by one call. It does the same
//! on the same addresses each time: what it reads is copied to where it read before.

use super::ffi::graph::{PoolId, RawGraph};
use super::stream::{Event, Stream};
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tch::Device;

/// How often work runs before it is captured: libraries set themselves up in their first runs, and TorchScript rewrites a
/// module in its second.
const WARM_UPS: usize = 3;

/// Memory that CUDA graphs of one device share. Their results lie in it: a replay may overwrite what another graph left
/// there, but for tensors of it that somebody still holds.
#[derive(Debug)]
pub struct CudaGraphPool {
    stream: Stream,
    /// A pool that its last graph has left is gone for libtorch, and its name is not taken again.
    id: Mutex<Weak<PoolId>>,
}

/// Work on a CUDA device that was captured: it is done again by one call.
#[derive(Debug)]
pub struct CudaGraph {
    // The pool's name goes before the graph does: a capture in between takes another name.
    _pool: Arc<PoolId>,
    raw: Mutex<RawGraph>,
}

impl CudaGraphPool {
    /// A pool of `device` and a stream to capture on; nothing is taken yet.
    ///
    /// # Errors
    /// As [`Stream::from_pool`].
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { stream: Stream::from_pool(device)?, id: Mutex::default() })
    }

    /// The device of its graphs.
    #[must_use]
    pub fn device(&self) -> Device {
        self.stream.device()
    }

    /// Does `work` three times on a stream of its own, and once more while recording it, and hands over what that gave:
    /// tensors that have values after [`CudaGraph::replay`], new ones after each.
    ///
    /// `work` may not wait for the device, read a number from it, or copy from memory on the host that is not pinned. Numbers
    /// that it draws from libtorch's global generator are others in each replay; other generators draw the same again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason for work that cannot be captured; whatever `work` fails with before. The
    /// stream, the device and other graphs go on as if nothing had been captured.
    pub fn capture<T>(&self, work: impl Fn() -> Result<T>) -> Result<(CudaGraph, T)> {
        let mut id = self.lock();
        let current = Stream::current(self.device())?;
        // What the work reads is there first, and what comes after finds its memory at rest.
        Event::record(current)?.wait(self.stream)?;
        let captured = self.stream.with(|| {
            for _ in 0..WARM_UPS {
                drop(work()?);
            }
            self.stream.synchronize()?;
            let pool = match id.upgrade() {
                Some(pool) => pool,
                None => Arc::new(PoolId::new()?),
            };
            self.record(pool, &work)
        });
        // What failed may have left the pool in use: the next graph takes another.
        *id = captured.as_ref().map_or_else(|_| Weak::new(), |(graph, _)| Arc::downgrade(&graph._pool));
        Event::record(self.stream)?.wait(current)?;
        captured
    }

    fn record<T>(&self, pool: Arc<PoolId>, work: impl Fn() -> Result<T>) -> Result<(CudaGraph, T)> {
        let Device::Cuda(index) = self.device() else {
            return Err(Error::Unsupported("CUDA graphs need a CUDA device".into()));
        };
        let mut raw = RawGraph::new(i16::try_from(index).unwrap_or(i16::MAX))?;
        raw.begin(&pool)?;
        // Going out of scope before its end, `raw` puts stream and allocator right.
        let made = work().map_err(uncapturable)?;
        raw.end().map_err(uncapturable)?;
        Ok((CudaGraph { _pool: pool, raw: Mutex::new(raw) }, made))
    }

    fn lock(&self) -> MutexGuard<'_, Weak<PoolId>> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ran before, and fails where it is recorded.
fn uncapturable(error: Error) -> Error {
    match error.kind() {
        Error::OutOfMemory(_) => error,
        _ => Error::Unsupported(format!("this cannot be captured as a CUDA graph: {error}")),
    }
}

impl CudaGraph {
    /// Does the work again, on the current stream of its device. The host does not wait.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device refuses.
    pub fn replay(&self) -> Result<()> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner).replay()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::cuda_unavailable_reason;

    #[test]
    fn without_cuda_graphs_say_why() {
        let error = CudaGraphPool::new(Device::Cpu).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("need a CUDA device")), "{error}");
        if let Some(reason) = cuda_unavailable_reason().unwrap() {
            let error = CudaGraphPool::new(Device::Cuda(0)).unwrap_err();
            assert!(error.to_string().contains(&reason), "{error}");
            // What libtorch's own library would be asked for is not there, or refuses.
            assert!(RawGraph::new(0).is_err());
        }
    }

    #[test]
    fn running_out_of_memory_in_a_capture_stays_that() {
        assert!(matches!(uncapturable(Error::OutOfMemory(String::new())), Error::OutOfMemory(_)));
        let error = uncapturable(Error::Torch("operation not permitted".into()));
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("operation not permitted")), "{error}");
    }
}
