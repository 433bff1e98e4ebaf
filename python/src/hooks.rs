//! The techniques that walk a model's tree of modules.

use crate::arguments::{device, kind};
use crate::errors::OrRaise;
use crate::models::cloned;
use crate::node::Node;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};
use tch_diffusers::hooks::{self, DEFAULT_SKIP_MODULES_PATTERN, GroupOffloading, GroupOffloadingType, SkipModules};
use tch_diffusers::models::attention_dispatch::AttentionBackend;
use tch_diffusers::models::attention_processor::{self as attention, AttentionProcessor, AttentionSlicing};
use tch_diffusers::nn;

/// The options of group offloading.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct GroupOffloadingOptions {
    onload_device: String,
    offload_device: String,
    offload_type: String,
    num_blocks_per_group: Option<usize>,
    non_blocking: bool,
    use_stream: bool,
    record_stream: bool,
    low_cpu_mem_usage: bool,
    offload_to_disk: bool,
    block_modules: Option<Vec<String>>,
}

impl GroupOffloadingOptions {
    fn options(self) -> PyResult<GroupOffloading> {
        let options = match self.offload_type.parse().or_raise()? {
            GroupOffloadingType::LeafLevel => GroupOffloading::leaf_level(),
            GroupOffloadingType::BlockLevel => {
                let blocks = self.num_blocks_per_group.ok_or_else(|| {
                    PyValueError::new_err("`num_blocks_per_group` is needed where `offload_type` is block_level")
                })?;
                GroupOffloading::block_level(blocks)
            }
        };
        let names = self.block_modules.unwrap_or_default();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        Ok(options
            .onload_device(device(&self.onload_device)?)
            .offload_device(device(&self.offload_device)?)
            .non_blocking(self.non_blocking)
            .use_stream(self.use_stream)
            .record_stream(self.record_stream)
            .low_cpu_mem_usage(self.low_cpu_mem_usage)
            .offload_to_disk(self.offload_to_disk)
            .block_modules(&names))
    }
}

/// Has weights come in groups.
#[pyfunction]
pub(crate) fn apply_group_offloading(py: Python<'_>, module: &Node, options: GroupOffloadingOptions) -> PyResult<()> {
    let (node, options) = (cloned(module), options.options()?);
    py.detach(move || hooks::apply_group_offloading(&node, &options)).or_raise()
}

/// Undoes `apply_group_offloading`; says whether there was anything to undo.
#[pyfunction]
pub(crate) fn remove_group_offloading(py: Python<'_>, module: &Node) -> PyResult<bool> {
    let node = cloned(module);
    py.detach(move || hooks::remove_group_offloading(&node)).or_raise()
}

/// Has each layer's weights come for the time of its forward.
#[pyfunction]
pub(crate) fn apply_sequential_offloading(py: Python<'_>, module: &Node, to: &str) -> PyResult<()> {
    let (node, to) = (cloned(module), device(to)?);
    py.detach(move || hooks::apply_sequential_offloading(&node, to)).or_raise()
}

/// Undoes `apply_sequential_offloading`; says whether there was anything to undo.
#[pyfunction]
pub(crate) fn remove_sequential_offloading(module: &Node) -> bool {
    hooks::remove_sequential_offloading(&module.0)
}

/// Of several models, one at a time is on a device.
#[pyclass(frozen)]
pub(crate) struct ModelOffload(Mutex<Option<hooks::ModelOffload>>);

#[pymethods]
impl ModelOffload {
    /// Attaches to models, by name, in the order of their use.
    #[new]
    fn new(py: Python<'_>, models: Vec<(String, PyRef<'_, Node>)>, to: &str) -> PyResult<Self> {
        let models: Vec<(String, nn::Node)> = models.into_iter().map(|(name, node)| (name, cloned(&node))).collect();
        let to = device(to)?;
        let attach = move || {
            let models: Vec<_> = models.iter().map(|(name, node)| (name.as_str(), node)).collect();
            hooks::ModelOffload::new(&models, to)
        };
        Ok(Self(Mutex::new(Some(py.detach(attach).or_raise()?))))
    }

    /// Sends the model that is on the device away.
    fn free(&self) {
        if let Some(offload) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            offload.free();
        }
    }

    /// Detaches from the models.
    fn remove(&self) {
        if let Some(offload) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            offload.remove();
        }
    }
}

/// Stores weights in one dtype and computes in another; the patterns are diffusers' default without any.
#[pyfunction]
#[pyo3(signature = (module, storage_dtype, compute_dtype, patterns=None, classes=None, everything=false))]
pub(crate) fn apply_layerwise_casting(
    module: &Node,
    storage_dtype: &str,
    compute_dtype: &str,
    patterns: Option<Vec<String>>,
    classes: Option<Vec<String>>,
    everything: bool,
) -> PyResult<()> {
    let patterns: Option<Vec<&str>> = patterns.as_ref().map(|list| list.iter().map(String::as_str).collect());
    let classes: Option<Vec<&str>> = classes.as_ref().map(|list| list.iter().map(String::as_str).collect());
    let skip = match everything {
        true => SkipModules::NONE,
        false => SkipModules {
            pattern: Some(patterns.as_deref().unwrap_or(&DEFAULT_SKIP_MODULES_PATTERN)),
            classes: classes.as_deref(),
        },
    };
    hooks::apply_layerwise_casting(&module.0, kind(storage_dtype)?, kind(compute_dtype)?, skip).or_raise()
}

/// Stores weights in the dtype that they are computed in again.
#[pyfunction]
pub(crate) fn disable_layerwise_casting(module: &Node) -> PyResult<()> {
    hooks::disable_layerwise_casting(&module.0).or_raise()
}

/// Computes attention in slices: `"auto"`, `"max"`, a number, or a number for each attention; all heads at once without.
#[pyfunction]
#[pyo3(signature = (module, slice_size=None, slice_sizes=None))]
pub(crate) fn set_attention_slice(
    module: &Node,
    slice_size: Option<&str>,
    slice_sizes: Option<Vec<i64>>,
) -> PyResult<()> {
    match slice_sizes {
        Some(sizes) => attention::set_attention_slices(&module.0, &sizes).or_raise(),
        None => {
            let slicing = slice_size.map(str::parse::<AttentionSlicing>).transpose().or_raise()?;
            attention::set_attention_slice(&module.0, slicing).or_raise()
        }
    }
}

/// Has attention computed by a backend.
#[pyfunction]
pub(crate) fn set_attention_backend(module: &Node, backend: &str) -> PyResult<()> {
    attention::set_attention_backend(&module.0, backend.parse::<AttentionBackend>().or_raise()?);
    Ok(())
}

/// Which backend each attention has, by path.
#[pyfunction]
pub(crate) fn attention_backends(module: &Node) -> Vec<(String, &'static str)> {
    attention::attention_backends(&module.0).into_iter().map(|(path, backend)| (path, backend.name())).collect()
}

/// How each attention computes, by path: diffusers' name of the processor, and its slice's size.
#[pyfunction]
pub(crate) fn attn_processors(module: &Node) -> Vec<(String, &'static str, Option<i64>)> {
    let named = |processor| match processor {
        AttentionProcessor::Default => ("AttnProcessor2_0", None),
        AttentionProcessor::Sliced(size) => ("SlicedAttnProcessor", Some(size)),
        AttentionProcessor::MemoryEfficient => ("XFormersAttnProcessor", None),
    };
    let processors = attention::attn_processors(&module.0).into_iter();
    processors.map(|(path, processor)| (path, named(processor).0, named(processor).1)).collect()
}

/// Has attention computed by libtorch's memory-efficient kernel; says whether it is where that kernel is.
#[pyfunction]
pub(crate) fn set_use_memory_efficient_attention(module: &Node, on: bool) -> bool {
    attention::set_use_memory_efficient_attention(&module.0, on)
}

/// Computes queries, keys and values as one product, or one after the other.
#[pyfunction]
pub(crate) fn set_fused_projections(module: &Node, fused: bool) {
    attention::set_fused_projections(&module.0, fused);
}

/// Computes convolutions on the CPU in float32 with a quarter of the multiplications, or as libtorch does.
#[pyfunction]
pub(crate) fn set_use_winograd(module: &Node, winograd: bool) {
    nn::set_use_winograd(&module.0, winograd);
}

/// Has convolutions on the CPU keep their weights in oneDNN's own layout, or no longer.
#[pyfunction]
pub(crate) fn set_weights_prepack(module: &Node, prepack: bool) -> PyResult<()> {
    match prepack {
        true => hooks::enable_weights_prepack(&module.0).or_raise(),
        false => {
            nn::set_weights_prepack(&module.0, false);
            Ok(())
        }
    }
}

/// Gives a model's weights back as they were loaded, with all techniques switched off.
#[pyfunction]
pub(crate) fn reset(py: Python<'_>, module: &Node) -> PyResult<()> {
    let node = cloned(module);
    py.detach(move || {
        attention::set_fused_projections(&node, false);
        nn::set_use_winograd(&node, false);
        nn::set_weights_prepack(&node, false);
        attention::set_attention_backend(&node, AttentionBackend::default());
        attention::set_use_memory_efficient_attention(&node, false);
        hooks::restore_weights(&node)
    })
    .or_raise()
}
