//! Tensors without elements: shapes that count the memory they would take, for as long as the tensors would live.

use super::weights::is_mapped;
use crate::error::{Error, Result};
use crate::nn::{Node, weights_prepack};
use crate::torch::cpu_capability;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use tch::{Device, Kind};

/// What a forward takes at its peak, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peak {
    /// What libtorch's allocator is asked for: activations, and copies of weights.
    pub(crate) allocated: i64,
    /// The copies of weights among that.
    pub(crate) copied: i64,
    /// That and pages of files, at their common peak.
    pub(crate) total: i64,
}

impl Peak {
    /// Without what was there before.
    pub(super) fn without(self, given: i64) -> Self {
        Self { allocated: self.allocated - given, total: self.total - given, ..self }
    }
}

/// Where shadows live: what is taken now, and what was taken at most.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(super) kind: Kind,
    pub(super) kernels: Kernels,
    activations: Cell<i64>,
    copied: Cell<i64>,
    mapped: Cell<i64>,
    peak: Cell<Peak>,
    /// The convolutions whose weights are packed.
    packed: RefCell<HashSet<usize>>,
}

/// Whose workspaces are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernels {
    /// libtorch's on the CPU: how many threads, and how many float32 a vector holds.
    Host { threads: i64, lanes: i64 },
    /// Those of a device, whose workspaces are not known here.
    Device,
}

impl Arena {
    /// An empty arena for a model of dtype `kind` that runs on `device`.
    pub(crate) fn new(kind: Kind, device: Device) -> Result<Rc<Self>> {
        let kernels = match device {
            Device::Cpu => {
                let lanes = if cpu_capability()?.starts_with("AVX512") { 16 } else { 8 };
                Kernels::Host { threads: i64::from(tch::get_num_threads()), lanes }
            }
            _ => Kernels::Device,
        };
        Ok(Rc::new(Self {
            kind,
            kernels,
            activations: Cell::new(0),
            copied: Cell::new(0),
            mapped: Cell::new(0),
            peak: Cell::default(),
            packed: RefCell::default(),
        }))
    }

    /// The peak since the last call of this, which begins anew at what is taken now.
    pub(crate) fn take_peak(&self) -> Peak {
        let peak = self.peak.take();
        self.note();
        peak
    }

    /// The bytes of one element.
    pub(super) fn element(&self) -> i64 {
        self.kind.elt_size_in_bytes() as i64
    }

    /// A tensor of the model's dtype.
    pub(crate) fn tensor(self: &Rc<Self>, shape: &[i64]) -> Shadow {
        let place = self.bytes(shape.iter().product::<i64>() * self.element());
        Shadow { shape: shape.to_vec(), channels_last: false, place }
    }

    /// So many bytes of something else.
    pub(crate) fn bytes(self: &Rc<Self>, bytes: i64) -> Rc<Place> {
        self.activations.set(self.activations.get() + bytes);
        self.note();
        Rc::new(Place { arena: self.clone(), bytes })
    }

    /// Brings what the hooks around `node` bring for its forward, until the answer is dropped.
    pub(super) fn enter(self: &Rc<Self>, node: &Node) -> Visit {
        let mut leaving = (0, 0);
        for brought in node.brought_weights(self.kind) {
            let (copied, mapped) = (brought.copied as i64, brought.mapped as i64);
            if brought.begins {
                self.weigh(copied, mapped);
            }
            if brought.ends {
                leaving = (leaving.0 + copied, leaving.1 + mapped);
            }
        }
        Visit { arena: self.clone(), leaving }
    }

    /// Lays out the weight of the convolution `node`, of so many elements, as its kernel wants it, once and for good. The
    /// pages of a file that it is mapped from are given back.
    pub(super) fn pack(&self, node: &Node, elements: i64) {
        let bytes = elements * self.element();
        if weights_prepack(node) == Some(0) && self.packed.borrow_mut().insert(node.id()) {
            self.weigh(bytes, if is_mapped(node) { -bytes } else { 0 });
        }
    }

    fn weigh(&self, copied: i64, mapped: i64) {
        self.copied.set(self.copied.get() + copied);
        self.mapped.set(self.mapped.get() + mapped);
        self.note();
    }

    fn note(&self) {
        let mut peak = self.peak.get();
        let (copied, mapped) = (self.copied.get(), self.mapped.get());
        let allocated = self.activations.get() + copied;
        if allocated > peak.allocated {
            (peak.allocated, peak.copied) = (allocated, copied);
        }
        peak.total = peak.total.max(allocated + mapped);
        self.peak.set(peak);
    }
}

/// Bytes that are taken until the last holder goes.
#[derive(Debug)]
pub(crate) struct Place {
    arena: Rc<Arena>,
    bytes: i64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arena.activations.set(self.arena.activations.get() - self.bytes);
    }
}

/// A module's forward under way.
#[derive(Debug)]
pub(super) struct Visit {
    arena: Rc<Arena>,
    leaving: (i64, i64),
}

impl Drop for Visit {
    fn drop(&mut self) {
        let (copied, mapped) = self.leaving;
        self.arena.weigh(-copied, -mapped);
    }
}

/// A tensor's shape, and the memory it would take. Clones and views share it.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    shape: Vec<i64>,
    channels_last: bool,
    place: Rc<Place>,
}

impl Shadow {
    pub(super) fn arena(&self) -> &Rc<Arena> {
        &self.place.arena
    }

    /// The same elements in another shape, row-major.
    pub(super) fn view(&self, shape: &[i64]) -> Self {
        Self { shape: shape.to_vec(), channels_last: false, place: self.place.clone() }
    }

    /// Another tensor of this shape and layout.
    pub(crate) fn like(&self) -> Self {
        self.arena().tensor(&self.shape).laid_out(self.channels_last)
    }

    /// The same with its channels last in memory, or not.
    pub(super) fn laid_out(self, channels_last: bool) -> Self {
        Self { channels_last, ..self }
    }

    /// Whether the channels of a picture come last in memory.
    pub(super) fn is_channels_last(&self) -> bool {
        self.channels_last
    }

    /// Another tensor of twice the batch.
    pub(crate) fn twice(&self) -> Result<Self> {
        let [batch, channels, height, width] = self.size4()?;
        Ok(self.arena().tensor(&[2 * batch, channels, height, width]))
    }

    /// Four sides: batch, channels, height, width.
    pub(super) fn size4(&self) -> Result<[i64; 4]> {
        <[i64; 4]>::try_from(self.shape.as_slice()).map_err(|_| self.unexpected())
    }

    /// Three sides: batch, tokens, channels.
    pub(super) fn size3(&self) -> Result<[i64; 3]> {
        <[i64; 3]>::try_from(self.shape.as_slice()).map_err(|_| self.unexpected())
    }

    fn unexpected(&self) -> Error {
        Error::Shape(format!("memory cannot be estimated: a tensor of shape {:?} was not expected", self.shape))
    }
}
