//! Pinned memory that weights pass through on their way.

use super::image::Image;
use super::{Lane, TransferDevice};
use crate::error::Result;
use crate::hooks::residency::Weight;
use crate::torch::whole_pages;
use tch::Tensor;

/// Two buffers: while the device reads one, the host fills the other.
#[derive(Debug)]
pub(super) struct Staging<D: TransferDevice> {
    length: usize,
    buffers: [Buffer<D>; 2],
    next: usize,
}

#[derive(Debug)]
struct Buffer<D: TransferDevice> {
    // Unpinned before the memory goes.
    _pinned: D::Pinned,
    bytes: Tensor,
    reader: Reader<D::Event>,
}

/// Whether the device still reads a buffer.
#[derive(Debug)]
enum Reader<E> {
    None,
    Until(E),
    /// A mark could not be set.
    Unknown,
}

impl<D: TransferDevice> Buffer<D> {
    fn new(device: &D, length: usize) -> Result<Self> {
        let bytes = whole_pages(length)?;
        Ok(Self { _pinned: device.pin(&bytes)?, bytes, reader: Reader::None })
    }

    /// Has the host wait until the device has read it.
    fn release(&mut self, device: &D) -> Result<()> {
        match std::mem::replace(&mut self.reader, Reader::Unknown) {
            Reader::None => (),
            Reader::Until(event) => device.synchronize(&event)?,
            Reader::Unknown => device.synchronize(&device.record(Lane::Copy)?)?,
        }
        self.reader = Reader::None;
        Ok(())
    }
}

impl<D: TransferDevice> Staging<D> {
    /// Of two buffers of `length` bytes, a multiple of a page.
    pub(super) fn new(device: &D, length: usize) -> Result<Self> {
        Ok(Self { length, buffers: [Buffer::new(device, length)?, Buffer::new(device, length)?], next: 0 })
    }

    /// Sends the weights to `to`, in as many copies as they fill buffers.
    pub(super) fn send(&mut self, device: &D, image: &Image, weights: &[Weight], to: &Tensor) -> Result<()> {
        for start in (0..image.bytes).step_by(self.length) {
            let length = self.length.min(image.bytes - start);
            let [first, second] = &mut self.buffers;
            let buffer = if self.next == 0 { first } else { second };
            self.next = 1 - self.next;
            buffer.release(device)?;
            image.write(weights, start..start + length, &buffer.bytes)?;
            buffer.reader = Reader::Unknown;
            let piece = buffer.bytes.f_narrow(0, 0, length as i64)?;
            device.copy(&piece, &to.f_narrow(0, start as i64, length as i64)?)?;
            buffer.reader = Reader::Until(device.record(Lane::Copy)?);
        }
        Ok(())
    }
}
