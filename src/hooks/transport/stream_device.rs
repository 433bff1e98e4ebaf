//! A CUDA device with a stream for copies.

use super::{Lane, TransferDevice};
use crate::error::Result;
use crate::torch::{Event, PinnedMemory, Stream, copy_non_blocking, record_stream};
use tch::{Device, Kind, Tensor};

/// A CUDA device: work in its current stream, copies in one from its pool. Compiles, but was not yet run on a device.
#[derive(Debug)]
pub struct StreamDevice {
    device: Device,
    copies: Stream,
}

impl StreamDevice {
    /// With a stream for copies from the pool of `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a device that is not CUDA, or where CUDA cannot be used.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self { device, copies: Stream::from_pool(device)? })
    }

    fn stream(&self, lane: Lane) -> Result<Stream> {
        match lane {
            Lane::Compute => Stream::current(self.device),
            Lane::Copy => Ok(self.copies),
        }
    }
}

impl TransferDevice for StreamDevice {
    type Event = Event;
    type Pinned = PinnedMemory;

    fn device(&self) -> Device {
        self.device
    }

    fn pin(&self, host: &Tensor) -> Result<PinnedMemory> {
        PinnedMemory::pin(host)
    }

    fn allocate(&self, bytes: usize, lane: Lane) -> Result<Tensor> {
        self.stream(lane)?.with(|| Ok(Tensor::f_empty([bytes as i64], (Kind::Uint8, self.device))?))
    }

    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        self.copies.with(|| copy_non_blocking(from, to))
    }

    fn record(&self, lane: Lane) -> Result<Event> {
        Event::record(self.stream(lane)?)
    }

    fn wait(&self, lane: Lane, event: &Event) -> Result<()> {
        event.wait(self.stream(lane)?)
    }

    fn synchronize(&self, event: &Event) -> Result<()> {
        event.synchronize()
    }

    fn record_stream(&self, buffer: &Tensor, lane: Lane) -> Result<()> {
        record_stream(buffer, self.stream(lane)?)
    }
}
