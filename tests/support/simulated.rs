//! A device with a lane for copies, on the CPU, for whatever order of events a real one may choose.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};
use tch_diffusers::hooks::{Lane, Step, TransferDevice};
use tch_diffusers::{Error, Result};

/// A device whose copies are as late as they may be: done when somebody waits for them, and not before. Until then the
/// memory they go to holds NaN. What may not happen on a real device is a panic here: writing over weights that are in use
/// or may be, and using weights that did not arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Simulated(Arc<Mutex<Simulation>>);

#[derive(Debug, Default)]
pub(crate) struct Simulation {
    /// All that the device was told, in order: `copy 512`, `wait compute`, `prefetch conv_in` ...
    pub(crate) log: Vec<String>,
    /// How many bytes were copied.
    pub(crate) copied: usize,
    /// Bytes that are pinned, and the most that were.
    pub(crate) pinned: usize,
    pub(crate) most_pinned: usize,
    /// How many calls there were, and the one that is to fail.
    pub(crate) calls: usize,
    pub(crate) fail_at: Option<usize>,
    /// Whether nothing more can be allocated.
    pub(crate) is_full: bool,
    queue: VecDeque<(Tensor, Tensor)>,
    /// How many copies were queued, and how many are done.
    queued: usize,
    done: usize,
    /// Counts the marks in the compute lane, and what is allocated and released between them.
    compute: usize,
    /// Which of these marks the copy lane has waited for.
    copy_waited: usize,
    buffers: HashMap<usize, Buffer>,
    /// Where the copies since the last step went to.
    target: Option<usize>,
    places: HashMap<String, (usize, usize)>,
}

/// Memory on the device, by its address.
#[derive(Debug)]
struct Buffer {
    length: usize,
    in_use: bool,
    /// The compute lane's count when what was in it was last used.
    released: usize,
}

/// A mark: in which lane, and behind how much of its work.
#[derive(Debug)]
pub(crate) struct Mark(Lane, usize);

/// Pinned memory.
#[derive(Debug)]
pub(crate) struct Pin(Simulated, usize);

impl Drop for Pin {
    fn drop(&mut self) {
        let is_read = self.0.with(|simulation| {
            simulation.pinned -= self.1;
            simulation.queue.is_empty()
        });
        assert!(is_read || std::thread::panicking(), "memory is unpinned that the device is still to read");
    }
}

impl Simulated {
    /// Looks at, or changes, what is simulated.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Simulation) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the device is told while `work` is done.
    pub(crate) fn log<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<String>) {
        self.with(|simulation| simulation.log.clear());
        let done = work();
        (done, self.with(|simulation| simulation.log.clone()))
    }

    /// Whether copies are queued that nobody waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.with(|simulation| simulation.queue.is_empty())
    }

    fn told<T>(&self, what: String, act: impl FnOnce(&mut Simulation) -> T) -> Result<T> {
        self.with(|simulation| {
            simulation.calls += 1;
            if simulation.fail_at == Some(simulation.calls) {
                return Err(Error::OutOfMemory(format!("injected: {what}")));
            }
            simulation.log.push(what);
            Ok(act(simulation))
        })
    }
}

impl Simulation {
    fn copy_until(&mut self, count: usize) {
        while self.done < count {
            let (from, mut to) = self.queue.pop_front().unwrap();
            to.copy_(&from);
            self.done += 1;
        }
    }

    fn buffer_at(&mut self, address: usize) -> (usize, &mut Buffer) {
        let inside = |start: &usize, buffer: &Buffer| (*start..start + buffer.length).contains(&address);
        let found = self.buffers.iter_mut().find(|(start, buffer)| inside(start, buffer));
        found.map(|(start, buffer)| (*start, buffer)).expect("an address on the device")
    }
}

fn poison(tensor: &Tensor) {
    let _ = tensor.shallow_clone().fill_(0xFF);
}

impl TransferDevice for Simulated {
    type Event = Mark;
    type Pinned = Pin;

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn pin(&self, host: &Tensor) -> Result<Pin> {
        let bytes = host.numel();
        self.told(format!("pin {bytes}"), |simulation| {
            simulation.pinned += bytes;
            simulation.most_pinned = simulation.most_pinned.max(simulation.pinned);
        })?;
        Ok(Pin(self.clone(), bytes))
    }

    fn allocate(&self, bytes: usize, lane: Lane) -> Result<Tensor> {
        if self.with(|simulation| simulation.is_full) {
            return Err(Error::OutOfMemory("the device is full".into()));
        }
        let memory = Tensor::empty([bytes as i64], (Kind::Uint8, Device::Cpu));
        poison(&memory);
        self.told(format!("allocate {bytes}"), |simulation| {
            // The allocator hands out what the lane may still be using.
            let released = if lane == Lane::Compute { simulation.compute + 1 } else { 0 };
            let (start, end) = (memory.data_ptr() as usize, memory.data_ptr() as usize + bytes);
            simulation.buffers.retain(|other, buffer| *other >= end || other + buffer.length <= start);
            simulation.buffers.insert(start, Buffer { length: bytes, in_use: false, released });
            simulation.compute += 1;
        })?;
        Ok(memory)
    }

    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        let bytes = from.numel();
        assert_eq!(bytes, to.numel());
        self.told(format!("copy {bytes}"), |simulation| {
            let waited = simulation.copy_waited;
            let (start, buffer) = simulation.buffer_at(to.data_ptr() as usize);
            assert!(!buffer.in_use, "weights are written over while they are in use");
            assert!(waited >= buffer.released, "weights are written over that may still be in use");
            simulation.target = Some(start);
            poison(to);
            simulation.queue.push_back((from.shallow_clone(), to.shallow_clone()));
            simulation.queued += 1;
            simulation.copied += bytes;
        })
    }

    fn record(&self, lane: Lane) -> Result<Mark> {
        self.told(format!("record {lane:?}").to_lowercase(), |simulation| match lane {
            Lane::Copy => Mark(lane, simulation.queued),
            Lane::Compute => {
                simulation.compute += 1;
                Mark(lane, simulation.compute)
            }
        })
    }

    fn wait(&self, lane: Lane, event: &Mark) -> Result<()> {
        self.told(format!("wait {lane:?}").to_lowercase(), |simulation| match (lane, event) {
            (Lane::Compute, Mark(Lane::Copy, count)) => simulation.copy_until(*count),
            (Lane::Copy, Mark(Lane::Compute, count)) => simulation.copy_waited = simulation.copy_waited.max(*count),
            _ => (),
        })
    }

    fn synchronize(&self, event: &Mark) -> Result<()> {
        self.told("synchronize".into(), |simulation| {
            if let Mark(Lane::Copy, count) = event {
                simulation.copy_until(*count);
            }
        })
    }

    fn record_stream(&self, _: &Tensor, lane: Lane) -> Result<()> {
        self.told(format!("record_stream {lane:?}").to_lowercase(), |_| ())
    }

    fn note(&self, step: Step, group: &str) {
        self.with(|simulation| {
            simulation.log.push(format!("{} {group}", step.name()));
            match step {
                Step::Onload | Step::Prefetch => {
                    let place = (simulation.target.take().expect("a copy"), simulation.queued);
                    simulation.places.insert(group.into(), place);
                }
                Step::Wait => {
                    let (place, count) = simulation.places[group];
                    assert!(simulation.done >= count, "{group} is used before it arrives");
                    simulation.buffer_at(place).1.in_use = true;
                }
                Step::Offload => {
                    let place = simulation.places[group].0;
                    simulation.compute += 1;
                    let released = simulation.compute;
                    let (_, buffer) = simulation.buffer_at(place);
                    (buffer.in_use, buffer.released) = (false, released);
                }
                Step::Cancel => (),
            }
        });
    }
}
