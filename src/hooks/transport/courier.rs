//! Brings groups of weights to a device, some ahead of their modules, and takes them away.

use super::foresight::Foresight;
use super::packing::{Hold, Pinning};
use super::{Lane, Step, TransferDevice};
use crate::error::{Error, Result};
use crate::hooks::residency::Weight;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};

/// The terms of a transport.
#[derive(Clone, Copy, Debug)]
pub(in crate::hooks) struct Terms {
    /// How many groups are sent for ahead of the one at work.
    pub(in crate::hooks) prefetch: usize,
    /// Whether the allocator, not a ring, decides when a group's memory on the device is used again.
    pub(in crate::hooks) record_stream: bool,
    pub(in crate::hooks) pinning: Pinning,
}

/// Takes the groups of a model to a device and back.
///
/// A run is one forward of the whole model. The memory on the device is a ring of buffers that lives for a run: a group
/// takes the smallest one that is free and long enough, or one of its own length in the place of one that is too short.
#[derive(Debug)]
pub(in crate::hooks) struct Transport<D: TransferDevice> {
    device: D,
    terms: Terms,
    names: Vec<String>,
    groups: Vec<Vec<Weight>>,
    state: Mutex<State<D>>,
    /// Held through a run, so that those of several threads take turns.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct State<D: TransferDevice> {
    hold: Hold<D>,
    places: Vec<Place<D::Event>>,
    free: Vec<Buffer<D::Event>>,
    /// The groups that were sent for and did not arrive yet, in this order.
    coming: Vec<usize>,
    /// How many groups are on the device or on their way.
    present: usize,
    foresight: Foresight,
    running: bool,
}

/// Where a group is.
#[derive(Debug, Default)]
enum Place<E> {
    /// On the host.
    #[default]
    Away,
    /// On its way; the event is its arrival.
    Coming(Buffer<E>, E),
    /// In the modules' slots, with what was in them before.
    Here(Buffer<E>, Vec<Tensor>),
}

/// Memory on the device.
#[derive(Debug)]
struct Buffer<E> {
    bytes: Tensor,
    /// Where the compute lane is done with what was in it before.
    free: Option<E>,
}

impl<E> Buffer<E> {
    fn addresses(&self) -> Range<usize> {
        let start = self.bytes.data_ptr() as usize;
        start..start + self.bytes.numel()
    }
}

/// What failed while cleaning up, or ahead of time, costs time or memory, but no result.
fn tell(what: &str, error: &Error) {
    tracing::debug!(target: "tch_diffusers::hooks", "{what}: {error}");
}

impl<D: TransferDevice> Transport<D> {
    /// Of groups of weights that lie on the host, each with its name in the log. Those that are left to files are dropped
    /// from memory.
    pub(in crate::hooks) fn new(device: D, groups: Vec<(String, Vec<Weight>)>, terms: Terms) -> Result<Self> {
        let (names, groups): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
        let dropped = groups.iter().flatten().try_for_each(Weight::drop_copy);
        let hold = dropped.and_then(|()| Hold::pack(&device, &groups, terms.pinning)).inspect_err(|_| {
            if let Err(error) = groups.iter().try_for_each(|weights| Weight::restore_copies(weights)) {
                tell("weights stay in their files", &error);
            }
        })?;
        let state = State {
            hold,
            places: groups.iter().map(|_| Place::Away).collect(),
            free: vec![],
            coming: vec![],
            present: 0,
            foresight: Foresight::default(),
            running: false,
        };
        Ok(Self { device, terms, names, groups, state: Mutex::new(state), turn: Mutex::default() })
    }

    pub(in crate::hooks) fn device(&self) -> Device {
        self.device.device()
    }

    pub(in crate::hooks) fn compute_dtype(&self, group: usize) -> Option<Kind> {
        self.groups.get(group)?.iter().find_map(Weight::compute_dtype)
    }

    /// Bytes on the device that a run may come to, for a model of dtype `kind`: a group that stays throughout, one at work, and
    /// those ahead of it, were they the longest.
    pub(in crate::hooks) fn most_at_once(&self, kind: Kind) -> usize {
        let state = self.state();
        let images = (0..self.groups.len()).filter_map(|group| state.hold.image(group));
        let mut lengths: Vec<_> = images.map(|image| image.bytes_as(kind)).collect();
        lengths.sort_unstable();
        lengths.iter().rev().take(self.terms.prefetch + 2).sum()
    }

    fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, step: Step, group: usize) {
        let name = self.names.get(group).map_or("", String::as_str);
        tracing::trace!(target: "tch_diffusers::hooks", group = name, "{}", step.name());
        self.device.note(step, name);
    }

    /// A run begins; it ends with [`Transport::end`], before what is handed back here goes.
    pub(in crate::hooks) fn begin(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        self.repack(&mut state)?;
        state.foresight.begin();
        state.running = true;
        Ok(turn)
    }

    /// A run is over: all groups are on the host again, and the ring is given back.
    pub(in crate::hooks) fn end(&self, completed: bool) {
        let mut state = self.state();
        for group in std::mem::take(&mut state.coming) {
            self.cancel(&mut state, group);
        }
        for group in 0..self.groups.len() {
            self.take_away(&mut state, group);
        }
        state.free.clear();
        state.foresight.finish(completed);
        state.running = false;
    }

    /// The module of `group` begins: its weights are in place when this returns, and the next groups on their way.
    pub(in crate::hooks) fn enter(&self, group: usize) -> Result<()> {
        let mut state = self.state();
        if matches!(state.places.get(group), Some(Place::Here(..))) {
            return Ok(());
        }
        if !state.running {
            self.repack(&mut state)?;
            self.bring(&mut state, group, Step::Onload)?;
            return self.receive(&mut state, group);
        }
        state.foresight.enter(group);
        let ahead = state.foresight.ahead(self.terms.prefetch);
        let unwanted = |other: &usize| *other != group && !ahead.contains(other);
        for other in state.coming.iter().copied().filter(unwanted).collect::<Vec<_>>() {
            self.cancel(&mut state, other);
        }
        self.bring(&mut state, group, Step::Onload)?;
        // The copies queue up in this order; what is computed waits for the first alone.
        self.receive(&mut state, group)?;
        for next in ahead {
            // It is sent for once more when its module begins, and what fails then is an error.
            if let Err(error) = self.bring(&mut state, next, Step::Prefetch) {
                tell("not sent for ahead", &error);
                break;
            }
        }
        Ok(())
    }

    /// The module of `group` is done.
    pub(in crate::hooks) fn leave(&self, group: usize) {
        let mut state = self.state();
        self.take_away(&mut state, group);
        if !state.running && state.present == 0 {
            state.free.clear();
        }
    }

    /// The inputs of a forward, on the device.
    pub(in crate::hooks) fn take_along(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let device = self.device();
        inputs.iter().map(|input| Ok(input.f_to_device_(device, input.f_kind()?, true, false)?)).collect()
    }

    /// What a module of `group` gave, in memory of its own where it gave a part of a weight: others come to lie there.
    pub(in crate::hooks) fn keep(&self, group: usize, outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let state = self.state();
        let Some(Place::Here(buffer, _)) = state.places.get(group) else { return Ok(outputs) };
        let addresses = buffer.addresses();
        let is_inside = |output: &Tensor| addresses.contains(&(output.data_ptr() as usize));
        let keep = |output: Tensor| Ok(if is_inside(&output) { output.f_alias_copy()? } else { output });
        outputs.into_iter().map(keep).collect()
    }

    /// Undoes it: weights left to files are read into memory, or none if one finds no room; nothing is pinned any more.
    pub(in crate::hooks) fn dissolve(&self) -> Result<()> {
        self.end(false);
        self.groups.iter().try_for_each(|weights| Weight::restore_copies(weights))?;
        self.state().hold.unpin(&self.device);
        Ok(())
    }

    /// Follows weights that were replaced since they were packed, by a cast for example.
    fn repack(&self, state: &mut State<D>) -> Result<()> {
        if state.present == 0 && !state.hold.holds(&self.groups)? {
            state.hold.unpin(&self.device);
            state.hold = Hold::pack(&self.device, &self.groups, self.terms.pinning)?;
        }
        Ok(())
    }

    /// Sends for `group`, unless it is on its way or there.
    fn bring(&self, state: &mut State<D>, group: usize, step: Step) -> Result<()> {
        if !matches!(state.places.get(group), Some(Place::Away)) {
            return Ok(());
        }
        let Some(bytes) = state.hold.image(group).map(|image| image.bytes) else { return Ok(()) };
        let buffer = self.buffer(&mut state.free, bytes)?;
        match self.send(&mut state.hold, group, &buffer) {
            Ok(arrival) => {
                self.set(state, group, Place::Coming(buffer, arrival));
                state.coming.push(group);
                self.note(step, group);
                Ok(())
            }
            Err(error) => {
                self.abandon(&buffer);
                Err(error)
            }
        }
    }

    fn send(&self, hold: &mut Hold<D>, group: usize, buffer: &Buffer<D::Event>) -> Result<D::Event> {
        if let Some(free) = &buffer.free {
            self.device.wait(Lane::Copy, free)?;
        }
        let weights = self.groups.get(group).map_or(&[][..], Vec::as_slice);
        hold.send(&self.device, group, weights, &buffer.bytes)?;
        self.device.record(Lane::Copy)
    }

    /// Memory on the device for `bytes` bytes.
    fn buffer(&self, free: &mut Vec<Buffer<D::Event>>, bytes: usize) -> Result<Buffer<D::Event>> {
        if self.terms.record_stream {
            let memory = self.device.allocate(bytes, Lane::Copy)?;
            self.device.record_stream(&memory, Lane::Compute)?;
            return Ok(Buffer { bytes: memory, free: None });
        }
        let lengths = || free.iter().map(|buffer| buffer.bytes.numel()).enumerate();
        let fitting = lengths().filter(|(_, length)| *length >= bytes).min_by_key(|(_, length)| *length);
        if let Some((at, _)) = fitting {
            return Ok(free.remove(at));
        }
        if let Some((longest, _)) = lengths().max_by_key(|(_, length)| *length) {
            drop(free.remove(longest));
        }
        let memory = self.device.allocate(bytes, Lane::Compute)?;
        // The allocator hands out what the compute lane may still be reading.
        Ok(Buffer { free: Some(self.device.record(Lane::Compute)?), bytes: memory })
    }

    /// Has what is computed wait for `group`, and puts its weights into the modules' slots.
    fn receive(&self, state: &mut State<D>, group: usize) -> Result<()> {
        let Some(Place::Coming(buffer, arrival)) = self.unset(state, group) else { return Ok(()) };
        let views = self.device.wait(Lane::Compute, &arrival).and_then(|()| self.views(state, group, &buffer.bytes));
        match views {
            Ok(views) => {
                let weights = self.groups.get(group).map_or(&[][..], Vec::as_slice);
                let originals = weights.iter().zip(views).map(|(weight, view)| weight.replace(view)).collect();
                self.set(state, group, Place::Here(buffer, originals));
                self.note(Step::Wait, group);
                Ok(())
            }
            Err(error) => {
                self.abandon(&buffer);
                Err(error)
            }
        }
    }

    fn views(&self, state: &State<D>, group: usize, buffer: &Tensor) -> Result<Vec<Tensor>> {
        let (Some(image), Some(weights)) = (state.hold.image(group), self.groups.get(group)) else { return Ok(vec![]) };
        let views = image.views(buffer)?.into_iter().zip(weights).zip(&image.parts);
        views.map(|((view, weight), part)| weight.arrived(view, part.in_file)).collect()
    }

    fn take_away(&self, state: &mut State<D>, group: usize) {
        if !matches!(state.places.get(group), Some(Place::Here(..))) {
            return;
        }
        let (Some(Place::Here(buffer, originals)), Some(weights)) = (self.unset(state, group), self.groups.get(group))
        else {
            return;
        };
        // Backwards, for a slot that is in the group twice.
        for (weight, original) in weights.iter().zip(originals).rev() {
            drop(weight.replace(original));
            weight.release();
        }
        self.note(Step::Offload, group);
        if !self.terms.record_stream {
            match self.device.record(Lane::Compute) {
                Ok(free) => state.free.push(Buffer { bytes: buffer.bytes, free: Some(free) }),
                // The memory goes to the allocator, which gives it to the compute lane alone.
                Err(error) => tell("a buffer leaves the ring", &error),
            }
        }
    }

    /// Takes back that `group` was sent for.
    fn cancel(&self, state: &mut State<D>, group: usize) {
        let Some(Place::Coming(buffer, arrival)) = self.unset(state, group) else { return };
        self.note(Step::Cancel, group);
        if self.terms.record_stream {
            return;
        }
        // The ring's memory belongs to the compute lane when it is given back, and this copy may still be writing.
        match self.device.wait(Lane::Compute, &arrival) {
            Ok(()) => state.free.push(Buffer { bytes: buffer.bytes, free: None }),
            Err(error) => {
                tell("a buffer leaves the ring", &error);
                self.abandon(&buffer);
            }
        }
    }

    /// Sees to it that memory whose copy went wrong is not used again while something may still be writing to it.
    fn abandon(&self, buffer: &Buffer<D::Event>) {
        if let Err(error) = self.device.record_stream(&buffer.bytes, Lane::Copy) {
            tell("a buffer that may still be written to is given back", &error);
        }
    }

    fn set(&self, state: &mut State<D>, group: usize, place: Place<D::Event>) {
        if let Some(old) = state.places.get_mut(group) {
            *old = place;
            state.present += 1;
        }
    }

    /// Takes what is at a group's place, if it is on the device or on its way.
    fn unset(&self, state: &mut State<D>, group: usize) -> Option<Place<D::Event>> {
        let place = state.places.get_mut(group).filter(|place| !matches!(place, Place::Away))?;
        state.coming.retain(|coming| *coming != group);
        state.present -= 1;
        Some(std::mem::take(place))
    }
}

impl<D: TransferDevice> Drop for Transport<D> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.hold.unpin(&self.device);
    }
}
