//! Streams, events, and host memory that a device reads by itself.
//!
//! A stream is a queue of work on a device: what is in one queue is done in order, different queues go on beside each
//! other. An event is a mark in a queue that other queues, or the host, can wait for. Twins of `torch.cuda.Stream` and
//! `torch.cuda.Event`.

use super::ffi::stream::{self as ffi, RawEvent, RawStream};
use super::version::cuda_unavailable_reason;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A queue of work on a CUDA device. Copies are the same queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(RawStream);

/// The number of a CUDA device that can be used.
fn index(device: Device) -> Result<i16> {
    let Device::Cuda(index) = device else {
        return Err(Error::Unsupported(format!("streams need a CUDA device, and {device:?} is none")));
    };
    if let Some(reason) = cuda_unavailable_reason()? {
        return Err(Error::Unsupported(format!(
            "streams need a CUDA device, and CUDA cannot be used here: {reason}; `tch-diffusers env` says more"
        )));
    }
    let count = tch::Cuda::device_count();
    i16::try_from(index)
        .ok()
        .filter(|&index| i64::from(index) < count)
        .ok_or_else(|| Error::Argument(format!("there is no CUDA device {index}: the last one is {}", count - 1)))
}

impl Stream {
    /// A stream from the pool of `device`. The pool is limited: of many streams, some are the same queue.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device that is not CUDA, or where CUDA cannot be used; [`Error::Argument`] for a
    /// device that is not there.
    pub fn from_pool(device: Device) -> Result<Self> {
        Ok(Self(RawStream::from_pool(index(device)?)?))
    }

    /// The stream that this thread's work on `device` goes to.
    ///
    /// # Errors
    /// As [`Stream::from_pool`].
    pub fn current(device: Device) -> Result<Self> {
        Ok(Self(RawStream::current(index(device)?)?))
    }

    /// The device it belongs to.
    #[must_use]
    pub fn device(self) -> Device {
        Device::Cuda(usize::try_from(self.0.index).unwrap_or_default())
    }

    /// Does `work` with this stream as the current one of its device; then the one before is current again, after
    /// errors too.
    ///
    /// # Errors
    /// Whatever `work` fails with.
    pub fn with<T>(self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _restored = Restored(self.0.exchange()?);
        work()
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// [`Error::Torch`] if work in it failed.
    pub fn synchronize(self) -> Result<()> {
        self.0.synchronize()
    }

    /// Whether all its work is done.
    ///
    /// # Errors
    /// [`Error::Torch`] if work in it failed.
    pub fn is_idle(self) -> Result<bool> {
        self.0.is_idle()
    }
}

struct Restored(RawStream);

impl Drop for Restored {
    fn drop(&mut self) {
        if let Err(error) = self.0.exchange() {
            tracing::warn!("the stream that was current before is not again: {error}");
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event(RawEvent);

impl Event {
    /// A mark behind the work that `stream` has now.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device refuses.
    pub fn record(stream: Stream) -> Result<Self> {
        let mut event = RawEvent::new()?;
        event.record(stream.0)?;
        Ok(Self(event))
    }

    /// Has the work that `stream` is given from now on wait for the mark. The host does not wait.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device refuses.
    pub fn wait(&self, stream: Stream) -> Result<()> {
        self.0.block(stream.0)
    }

    /// Has the host wait for the mark.
    ///
    /// # Errors
    /// [`Error::Torch`] if work before the mark failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    /// Whether the mark is reached.
    ///
    /// # Errors
    /// [`Error::Torch`] if work before the mark failed.
    pub fn is_reached(&self) -> Result<bool> {
        self.0.is_reached()
    }
}

/// Keeps the memory of `tensor`, once nobody holds it any more, from being given to others before the work that `stream`
/// has at that moment is done: `torch.Tensor.record_stream`.
///
/// # Errors
/// [`Error::Torch`] for a tensor that is not on the stream's device.
pub fn record_stream(tensor: &Tensor, stream: Stream) -> Result<()> {
    ffi::record_stream(tensor, stream.0)
}

/// Copies `from` into `to`, on the current stream of the device that is involved. The host does not wait where it is
/// [pinned](PinnedMemory).
///
/// # Errors
/// [`Error::Torch`] if the shapes do not broadcast.
pub fn copy_non_blocking(from: &Tensor, to: &Tensor) -> Result<()> {
    ffi::copy(to, from, true)
}

/// The unit in which memory is pinned, in bytes.
pub const PAGE: usize = 4096;

/// `bytes` bytes of ordinary memory on the host, rounded up to whole pages that they share with nothing else, so that
/// [`PinnedMemory`] can pin them.
///
/// # Errors
/// [`Error::OutOfMemory`] where there is no room.
pub fn whole_pages(bytes: usize) -> Result<Tensor> {
    let length = bytes.next_multiple_of(PAGE);
    let memory = Tensor::f_empty([(length + PAGE) as i64], (Kind::Uint8, Device::Cpu))?;
    let start = (memory.data_ptr() as usize).next_multiple_of(PAGE) - memory.data_ptr() as usize;
    Ok(memory.f_narrow(0, start as i64, length as i64)?)
}

/// Gives freed memory of the host back to the operating system. glibc keeps what lies between blocks in use; other
/// allocators need no telling.
pub fn trim_host_memory() {
    ffi::trim();
}

/// Host memory that stays where it is until this goes, so that a CUDA device can read it beside other work.
///
/// libtorch's own pinned memory comes in powers of two, which takes up to twice the bytes asked for. This pins memory that
/// is there already, to the page.
#[derive(Debug)]
pub struct PinnedMemory(Tensor);

impl PinnedMemory {
    /// Pins the memory of `host`, a tensor made by [`whole_pages`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] where CUDA cannot be used, [`Error::OutOfMemory`] where the system pins no more,
    /// [`Error::Argument`] for a tensor that is on a device or has gaps.
    pub fn pin(host: &Tensor) -> Result<Self> {
        if host.device() != Device::Cpu || !host.is_contiguous() {
            return Err(Error::Argument("only contiguous tensors on the host can be pinned".into()));
        }
        if let Some(reason) = cuda_unavailable_reason()? {
            return Err(Error::Unsupported(format!("memory is pinned for CUDA, which cannot be used here: {reason}")));
        }
        ffi::pin(host, host.numel() * host.f_kind()?.elt_size_in_bytes())?;
        Ok(Self(host.shallow_clone()))
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Err(error) = ffi::unpin(&self.0) {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_streams() {
        let error = Stream::from_pool(Device::Cpu).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("need a CUDA device")), "{error}");
    }

    #[test]
    fn without_cuda_streams_and_pinning_say_why() {
        let Some(reason) = cuda_unavailable_reason().unwrap() else { return };
        let host = whole_pages(1).unwrap();
        for error in
            [Stream::current(Device::Cuda(0)).map(drop).unwrap_err(), PinnedMemory::pin(&host).map(drop).unwrap_err()]
        {
            assert!(matches!(&error, Error::Unsupported(text) if text.contains(&reason)), "{error}");
        }
    }

    #[test]
    fn what_libtorch_says_without_cuda_crosses_the_border_as_an_error() {
        if cuda_unavailable_reason().unwrap().is_some() {
            assert!(RawStream::current(0).is_err());
            assert!(ffi::pin(&whole_pages(1).unwrap(), PAGE).is_err());
        }
        let host = whole_pages(1).unwrap();
        assert!(ffi::copy(&host, &Tensor::zeros([3], (Kind::Uint8, Device::Cpu)), true).is_err());
    }

    #[test]
    fn whole_pages_begin_and_end_with_a_page() {
        for bytes in [1, PAGE, PAGE + 1] {
            let memory = whole_pages(bytes).unwrap();
            assert_eq!((memory.data_ptr() as usize % PAGE, memory.numel() % PAGE), (0, 0));
            assert!((bytes..bytes + PAGE).contains(&memory.numel()));
        }
    }
}
