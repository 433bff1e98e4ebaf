//! How weights get to a device beside the work that is done there.
//!
//! A group of weights lies in one piece of host memory and travels in one copy, on a lane of its own. What is computed
//! waits for the copy by an event, and a copy into memory that was used before waits for that use by another; the host
//! waits for neither.

mod courier;
mod foresight;
mod image;
mod packing;
mod staging;
mod stream_device;

pub(super) use courier::{Terms, Transport};
pub(super) use packing::Pinning;
pub use stream_device::StreamDevice;

use crate::error::Result;
use std::fmt::Debug;
use tch::{Device, Tensor};

/// The smallest `pinned_memory_limit`, in bytes: room for two buffers of a page, and as much again.
pub(super) const SMALLEST_LIMIT: usize = 4 * crate::torch::PAGE;

/// A queue of work on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What layers do: the device's current stream.
    Compute,
    /// What brings the weights.
    Copy,
}

/// What happens to a group of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was sent for when its module began.
    Onload,
    /// It was sent for ahead of its module.
    Prefetch,
    /// What is computed waits for it from here on, and its module finds it in place.
    Wait,
    /// Its weights wait on the host again, and its place on the device may be used for others.
    Offload,
    /// It was sent for ahead, and another module ran instead.
    Cancel,
}

impl Step {
    /// The word in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Onload => "onload",
            Self::Prefetch => "prefetch",
            Self::Wait => "wait",
            Self::Offload => "offload",
            Self::Cancel => "cancel",
        }
    }
}

/// A device with a lane for copies beside the one for work. [`StreamDevice`] is the real one; tests put one in its place
/// that lies on the CPU, and notes what it is told.
pub trait TransferDevice: Debug + Send + Sync + 'static {
    /// A mark in a lane.
    type Event: Debug + Send;
    /// Keeps host memory pinned until it goes.
    type Pinned: Debug + Send;

    /// Where the work is done.
    fn device(&self) -> Device;

    /// Pins `host`, whole pages of host memory.
    ///
    /// # Errors
    /// If the system pins no more.
    fn pin(&self, host: &Tensor) -> Result<Self::Pinned>;

    /// `bytes` bytes on the device, for work in `lane` from now on: they may have been used before in that lane alone.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where there is no room.
    fn allocate(&self, bytes: usize, lane: Lane) -> Result<Tensor>;

    /// Copies pinned host memory to the device, in the copy lane.
    ///
    /// # Errors
    /// If the device refuses.
    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()>;

    /// A mark behind what `lane` has to do now.
    ///
    /// # Errors
    /// If the device refuses.
    fn record(&self, lane: Lane) -> Result<Self::Event>;

    /// Has `lane` wait for a mark before it does what it is given from now on.
    ///
    /// # Errors
    /// If the device refuses.
    fn wait(&self, lane: Lane, event: &Self::Event) -> Result<()>;

    /// Has the host wait for a mark.
    ///
    /// # Errors
    /// If the work before the mark failed.
    fn synchronize(&self, event: &Self::Event) -> Result<()>;

    /// Keeps `buffer`, once it is dropped, from being used again before `lane` is done with what it has to do then.
    ///
    /// # Errors
    /// If the device refuses.
    fn record_stream(&self, buffer: &Tensor, lane: Lane) -> Result<()>;

    /// Is told what happens to the group called `group`.
    fn note(&self, step: Step, group: &str) {
        let _ = (step, group);
    }
}
