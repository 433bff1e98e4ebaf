//! The weights of models, by where and how they lie.

use super::Arena;
use crate::error::Result;
use crate::hooks::{LAYERWISE_CASTING_HOOK, offloading};
use crate::models::attention_processor::{AttentionProcessor, attn_processors};
use crate::nn::{Node, Param, weights_prepack};
use crate::torch::{DeviceExt, KindExt, is_pinned};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

/// The weights of one model on one device, in bytes. What several weights share is counted once, where it is met first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightMemory {
    /// The model, such as `unet`.
    pub component: String,
    /// The device, as torch names it.
    pub device: String,
    /// In memory that was allocated for them.
    pub resident: i64,
    /// Of these, in page-locked host memory.
    pub pinned: i64,
    /// In maps of files: in memory only while they are used, or as long as the operating system likes to keep them.
    pub mapped: i64,
    /// Of those that are resident, stored in 8 bits.
    pub quantized: i64,
    /// Of those that are resident, second copies in the layout of the kernels that compute with them.
    pub packed: i64,
}

impl WeightMemory {
    fn new(component: &str, device: Device) -> Self {
        let (component, device) = (component.into(), device.torch_name());
        Self { component, device, resident: 0, pinned: 0, mapped: 0, quantized: 0, packed: 0 }
    }

    /// Resident and mapped together.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.resident + self.mapped
    }
}

/// The bytes from the first to the last element of `tensor` that belong to it.
fn bytes(tensor: &Tensor) -> i64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as i64
}

/// Whether some weight of `node` itself lies in the map of a file.
pub(super) fn is_mapped(node: &Node) -> bool {
    node.own_params().iter().any(|(_, param)| lies_in_map(param, &param.get()).unwrap_or(false))
}

fn lies_in_map(param: &Param, tensor: &Tensor) -> Result<bool> {
    param.origin().map_or(Ok(false), |origin| origin.is(tensor))
}

/// A weight's place.
struct Lies {
    /// Which model it belongs to.
    component: usize,
    device: Device,
    start: i64,
    bytes: i64,
    pinned: bool,
    mapped: bool,
    quantized: bool,
}

fn lies(component: usize, param: &Param) -> Result<Lies> {
    let tensor = param.get();
    let (device, kind) = (tensor.device(), tensor.f_kind()?);
    Ok(Lies {
        component,
        device,
        start: tensor.data_ptr() as i64,
        bytes: bytes(&tensor),
        pinned: device == Device::Cpu && is_pinned(&tensor)?,
        mapped: lies_in_map(param, &tensor)?,
        quantized: kind.elt_size_in_bytes() == 1,
    })
}

/// What the weights of `models` take, a line for each model and device.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn weight_memory(models: &[(&str, &Node)]) -> Result<Vec<WeightMemory>> {
    let mut all = vec![];
    for (number, (_, node)) in models.iter().enumerate() {
        let params = node.params().into_iter().map(|(_, param)| param).chain(node.hook_weights());
        for param in params {
            all.push(lies(number, &param)?);
        }
    }
    all.sort_by_key(|lies| (lies.device.torch_name(), lies.start, lies.component));
    let mut table: Vec<(usize, Device, WeightMemory)> = vec![];
    let mut seen: Option<(Device, i64)> = None;
    for lies in all {
        let covered = seen.filter(|(device, _)| *device == lies.device).map_or(lies.start, |(_, end)| end);
        let end = lies.start + lies.bytes;
        let bytes = (end - covered.max(lies.start)).max(0);
        seen = Some((lies.device, end.max(covered)));
        let known =
            |(number, device, _): &(usize, Device, WeightMemory)| (*number, *device) == (lies.component, lies.device);
        let at = table.iter().position(known).unwrap_or(table.len());
        if at == table.len() {
            let line = WeightMemory::new(models[lies.component].0, lies.device);
            table.push((lies.component, lies.device, line));
        }
        let line = &mut table[at].2;
        if lies.mapped {
            line.mapped += bytes;
            continue;
        }
        line.resident += bytes;
        line.pinned += if lies.pinned { bytes } else { 0 };
        line.quantized += if lies.quantized { bytes } else { 0 };
    }
    for (number, (_, node)) in models.iter().enumerate() {
        let line = table.iter_mut().find(|(known, device, _)| (*known, *device) == (number, Device::Cpu));
        if let (Some((.., line)), Some(packed)) = (line, weights_prepack(node)) {
            line.resident += packed;
            line.packed += packed;
        }
    }
    table.sort_by_key(|(number, device, _)| (*number, device.torch_name()));
    Ok(table.into_iter().map(|(_, _, line)| line).collect())
}

/// A weight's bytes in a model of dtype `kind`; what is stored in 8 bits stays so.
fn bytes_as(tensor: &Tensor, kind: Kind) -> i64 {
    let stored = tensor.kind();
    let kind = if stored.is_floating_point() && stored.elt_size_in_bytes() > 1 { kind } else { stored };
    (tensor.numel() * kind.elt_size_in_bytes()) as i64
}

/// Weights at or below `node` that lie on `device` all the time, were the model of dtype `kind`: those that are not left
/// to files.
pub(crate) fn persistent(node: &Node, device: Device, kind: Kind) -> i64 {
    let left_to_files = offloading(node) == Some("group offloading");
    let stays = |param: &Param| {
        let tensor = param.get();
        let left = left_to_files && lies_in_map(param, &tensor).unwrap_or(false);
        if tensor.device() == device && !left { bytes_as(&tensor, kind) } else { 0 }
    };
    let weights: i64 = node.params().iter().map(|(_, param)| stays(param)).sum();
    weights + node.walk().iter().map(packed).sum::<i64>()
}

/// What the packed weight of `node` itself takes beyond the weight, whose pages are given back if it is mapped.
fn packed(node: &Node) -> i64 {
    let bytes = if node.children().is_empty() { weights_prepack(node).unwrap_or(0) } else { 0 };
    if is_mapped(node) { 0 } else { bytes }
}

/// What weights stored in fewer bits than are computed with save in a model of dtype `kind`.
pub(crate) fn cast_saving(node: &Node, kind: Kind) -> i64 {
    let hooked = node.walk().into_iter().filter(|node| node.hook(LAYERWISE_CASTING_HOOK).is_some());
    let params = hooked.flat_map(|node| node.params());
    let stored = params.map(|(_, param)| param.get()).filter(|tensor| tensor.kind().elt_size_in_bytes() == 1);
    stored.map(|tensor| (tensor.numel() * (kind.elt_size_in_bytes() - 1)) as i64).sum()
}

/// What offloading keeps from the device where `node` runs, and its name: all weights but the most that come at once.
pub(crate) fn offload_saving(node: &Node, kind: Kind) -> Result<Option<(&'static str, i64)>> {
    let Some(name) = offloading(node) else { return Ok(None) };
    let device = node.execution_device();
    let all: i64 = node.params().iter().map(|(_, param)| bytes_as(&param.get(), kind)).sum();
    let arena = Arena::new(kind, device)?;
    visit(node, &arena);
    let brought = arena.take_peak().total;
    Ok(Some((name, (all - persistent(node, device, kind) - brought).max(0))))
}

/// Enters every module as a forward in the tree's order would.
fn visit(node: &Node, arena: &std::rc::Rc<Arena>) {
    let _visit = arena.enter(node);
    node.children().iter().for_each(|(_, child)| visit(child, arena));
}

/// Whether some attention at or below `node` is computed in slices.
pub(crate) fn uses_attention_slicing(node: &Node) -> bool {
    attn_processors(node).iter().any(|(_, processor)| matches!(processor, AttentionProcessor::Sliced(_)))
}
