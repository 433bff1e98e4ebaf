//! Weights that are on a device for the time of a forward.
//!
//! The originals are kept while copies of them are on the device, so that going back is dropping the copies: nothing is
//! copied back, and a forward that fails leaves the very tensors that were there before.

use crate::error::{Error, Result};
use crate::nn::Param;
use crate::torch::{KindExt, MappedTensor, MemoryFormat};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};

/// Some weights of a model, and the device they go to together.
#[derive(Debug)]
pub(super) struct Residency {
    name: String,
    weights: Vec<Weight>,
    device: Device,
    non_blocking: bool,
    /// What the slots held before; there while the weights are on the device.
    originals: Mutex<Option<Vec<Tensor>>>,
}

/// A weight, and the file it is read from anew for each forward, if it is.
#[derive(Debug)]
pub(super) struct Weight {
    param: Param,
    file: Option<InFile>,
}

/// How a weight is made from its file.
#[derive(Clone, Debug)]
struct InFile {
    tensor: MappedTensor,
    kind: Kind,
    format: MemoryFormat,
}

impl Residency {
    /// `name` is what the log calls it.
    pub(super) fn new(name: String, weights: Vec<Weight>, device: Device, non_blocking: bool) -> Self {
        Self { name, weights, device, non_blocking, originals: Mutex::default() }
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// The dtype that weights read from their file are cast to, where that is another than the file's.
    pub(super) fn compute_dtype(&self) -> Option<Kind> {
        self.weights.iter().find_map(Weight::compute_dtype)
    }

    /// What the weights take while they are on the device, for a model of dtype `kind`: bytes of copies, and bytes of files'
    /// pages that are looked at.
    pub(super) fn bytes(&self, kind: Kind) -> (usize, usize) {
        let bytes = self.weights.iter().map(|weight| weight.bytes(self.device, kind));
        bytes.fold((0, 0), |sum, (copied, mapped)| (sum.0 + copied, sum.1 + mapped))
    }

    fn originals(&self) -> MutexGuard<'_, Option<Vec<Tensor>>> {
        self.originals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_onloaded(&self) -> bool {
        self.originals().is_some()
    }

    /// Brings the weights to the device: all of them, or none if one finds no room.
    pub(super) fn onload(&self) -> Result<()> {
        let mut originals = self.originals();
        if originals.is_some() {
            return Ok(());
        }
        tracing::trace!(target: "tch_diffusers::hooks", group = self.name.as_str(), "onload");
        let onload = |weight: &Weight| weight.onload(self.device, self.non_blocking);
        let copies = self.weights.iter().map(onload).collect::<Result<Vec<_>>>()?;
        let replaced = self.weights.iter().zip(copies).map(|(weight, copy)| weight.param.replace(copy));
        *originals = Some(replaced.collect());
        Ok(())
    }

    /// Puts the originals back. Does nothing where the weights are not on the device.
    pub(super) fn offload(&self) {
        let Some(originals) = self.originals().take() else { return };
        tracing::trace!(target: "tch_diffusers::hooks", group = self.name.as_str(), "offload");
        for (weight, original) in self.weights.iter().zip(originals) {
            drop(weight.param.replace(original));
            weight.release();
        }
    }

    /// The inputs of a forward, on the device.
    pub(super) fn receive(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let receive =
            |input: &Tensor| Ok(input.f_to_device_(self.device, input.f_kind()?, self.non_blocking, false)?);
        inputs.iter().map(receive).collect()
    }

    /// Leaves weights that are read from their files to the files alone.
    pub(super) fn drop_copies(&self) -> Result<()> {
        self.weights.iter().try_for_each(Weight::drop_copy)
    }

    /// Undoes [`Residency::drop_copies`]: all weights, or none if one finds no room.
    pub(super) fn restore_copies(&self) -> Result<()> {
        self.offload();
        Weight::restore_copies(&self.weights)
    }
}

impl Weight {
    /// Undoes [`Weight::drop_copy`]: for all `weights`, or none if one finds no room.
    pub(super) fn restore_copies(weights: &[Self]) -> Result<()> {
        let in_files = || weights.iter().filter(|weight| weight.file.is_some());
        let copies = in_files().map(|weight| weight.onload(Device::Cpu, false)).collect::<Result<Vec<_>>>()?;
        for (weight, copy) in in_files().zip(copies) {
            drop(weight.param.replace(copy));
        }
        Ok(())
    }

    /// A weight that stays in memory.
    pub(super) fn in_memory(param: Param) -> Self {
        Self { param, file: None }
    }

    /// A weight that is read from the file it was loaded from, and cast to `compute_dtype` if it is of another, or else to
    /// its present dtype. `key` is its name in errors.
    pub(super) fn in_file(key: &str, param: Param, compute_dtype: Option<Kind>) -> Result<Self> {
        let refuse = |why: &str| Err(Error::Argument(format!("`{key}` cannot be left to its file: {why}")));
        let Some(tensor) = param.origin().cloned() else {
            return refuse("it did not come from a safetensors file");
        };
        if tensor.is_written()? {
            return refuse("weights of that file were changed in place since they were loaded");
        }
        let weight = param.get();
        if weight.device() != Device::Cpu {
            return refuse("it was moved from the CPU");
        }
        if weight.f_kind()?.elt_size_in_bytes() == 1 && weight.f_kind()? != tensor.kind() {
            return refuse("layerwise casting stores it in 8 bits, which a file of more bits does not give");
        }
        // By the strides alone: a kernel of one pixel counts as contiguous in either order.
        let format = match weight.size()[..] {
            [_, c, h, w] if weight.stride() == [c * h * w, 1, w * c, c] => MemoryFormat::ChannelsLast,
            _ => MemoryFormat::Contiguous,
        };
        let present = weight.f_kind()?;
        let kind = compute_dtype.filter(|_| present.is_floating_point()).unwrap_or(present);
        let file = InFile { tensor, kind, format };
        // A copy, because it has another dtype or order: no change is lost if the file gives the same once more.
        if !file.tensor.is(&weight)? {
            let again = InFile { kind: present, ..file.clone() }.read(Device::Cpu, false)?;
            let same = again.stride() == weight.stride() && again.f_equal(&weight)?;
            file.tensor.release()?;
            if !same {
                return refuse("it was changed since it was loaded");
            }
        }
        Ok(Self { param, file: Some(file) })
    }

    /// The weight on `device`. One that was replaced since offloading began is taken as it is now.
    fn onload(&self, device: Device, non_blocking: bool) -> Result<Tensor> {
        let current = self.param.get();
        match &self.file {
            Some(file) if file.tensor.is(&current)? => file.read(device, non_blocking),
            _ => Ok(current.f_to_device_(device, current.f_kind()?, non_blocking, false)?),
        }
    }

    /// [`Residency::bytes`] of this weight.
    fn bytes(&self, device: Device, kind: Kind) -> (usize, usize) {
        let current = self.param.get();
        let (stored, elements) = (current.kind(), current.numel());
        let computed = if stored.elt_size_in_bytes() > 1 && stored.is_floating_point() { kind } else { stored };
        let bytes = elements * computed.elt_size_in_bytes();
        match &self.file {
            Some(file) if device == Device::Cpu && file.tensor.kind() == computed => match file.format {
                MemoryFormat::Contiguous => (0, bytes),
                MemoryFormat::ChannelsLast => (bytes, bytes),
            },
            Some(file) => (bytes, elements * file.tensor.kind().elt_size_in_bytes()),
            None if current.device() == device => (0, 0),
            None => (bytes, 0),
        }
    }

    /// The dtype that it is cast to for a forward, where its file has another.
    pub(super) fn compute_dtype(&self) -> Option<Kind> {
        self.file.as_ref().filter(|file| file.kind != file.tensor.kind()).map(|file| file.kind)
    }

    /// What the slot holds.
    pub(super) fn waiting(&self) -> Tensor {
        self.param.get()
    }

    /// Whether `waiting` is a view of the file that the weight was left to.
    pub(super) fn is_in_file(&self, waiting: &Tensor) -> Result<bool> {
        self.file.as_ref().map_or(Ok(false), |file| file.tensor.is(waiting))
    }

    /// Puts `tensor` in the slot and hands back what was there.
    pub(super) fn replace(&self, tensor: Tensor) -> Tensor {
        self.param.replace(tensor)
    }

    /// What the module finds: `copy` of the waiting weight, as it would be had it not been left to its file.
    pub(super) fn arrived(&self, copy: Tensor, from_file: bool) -> Result<Tensor> {
        match self.file.as_ref().filter(|_| from_file) {
            Some(file) => file.format.apply(&copy.f_to_kind(file.kind)?),
            None => Ok(copy),
        }
    }

    /// Lays a weight that does not fill its memory, such as every other row of a matrix, out without gaps.
    pub(super) fn close_gaps(&self) -> Result<()> {
        let waiting = self.param.get();
        if !fills_its_memory(&waiting) {
            drop(self.param.replace(waiting.f_contiguous()?));
        }
        Ok(())
    }

    /// Moves the weight's numbers to `place`, which is in the slot from then on.
    pub(super) fn move_to(&self, mut place: Tensor) -> Result<()> {
        tch::no_grad(|| place.f_copy_(&self.param.get()))?;
        drop(self.param.replace(place));
        if let Some(Err(error)) = self.param.origin().map(MappedTensor::release) {
            tracing::debug!(target: "tch_diffusers::hooks", "{error}");
        }
        Ok(())
    }

    pub(super) fn drop_copy(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        drop(self.param.replace(file.tensor.view()?));
        file.tensor.release()
    }

    /// Gives the file's pages back. That it cannot be done costs memory, and nothing else.
    pub(super) fn release(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.tensor.release()) {
            tracing::debug!(target: "tch_diffusers::hooks", "{error}");
        }
    }
}

impl InFile {
    fn read(&self, device: Device, non_blocking: bool) -> Result<Tensor> {
        let stored = self.tensor.view()?;
        let moved = stored.f_to_device_(device, self.tensor.kind(), non_blocking, false)?;
        self.format.apply(&moved.f_to_kind(self.kind)?)
    }
}

/// Whether the elements lie side by side, in whatever order of dimensions.
pub(crate) fn fills_its_memory(tensor: &Tensor) -> bool {
    let sides = tensor.size().into_iter().zip(tensor.stride()).filter(|(side, _)| *side != 1);
    let mut sides: Vec<_> = sides.collect();
    sides.sort_by_key(|(_, stride)| *stride);
    let filled = sides.into_iter().try_fold(1, |filled, (side, stride)| (stride == filled).then_some(filled * side));
    filled.is_some() || tensor.numel() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_dimensions_fill_their_memory_and_parts_do_not() {
        let tensor = Tensor::zeros([2, 3, 4, 5], (Kind::Float, Device::Cpu));
        let last = MemoryFormat::ChannelsLast.apply(&tensor).unwrap();
        let scalar = Tensor::from(1.0);
        assert!(
            [&tensor, &last, &tensor.transpose(1, 3), &scalar, &tensor.narrow(0, 1, 1)].map(fills_its_memory)
                == [true; 5]
        );
        assert!(
            [&tensor.narrow(1, 0, 2), &tensor.slice(3, 0, 5, 2), &scalar.expand([3], false)].map(fills_its_memory)
                == [false; 3]
        );
    }
}
