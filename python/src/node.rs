//! A module's place in a model, with its weights.

use crate::arguments::{device, device_name, kind, memory_format};
use crate::bridge::PyTensor;
use crate::errors::OrRaise;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use tch_diffusers::hooks::{refuse_if_offloaded, set_compute_dtype};
use tch_diffusers::{KindExt, nn};

/// A module's place in a model, with its weights.
#[pyclass(frozen)]
pub(crate) struct Node(pub(crate) nn::Node);

#[pymethods]
impl Node {
    /// The dotted path from the model.
    #[getter]
    fn path(&self) -> &str {
        self.0.path()
    }

    /// The name of the module's class.
    #[getter]
    fn class_name(&self) -> &'static str {
        self.0.class()
    }

    /// The modules directly below, by name.
    fn children(&self) -> Vec<(String, Self)> {
        self.0.children().into_iter().map(|(name, node)| (name, Self(node))).collect()
    }

    /// The module at a dotted path below this one.
    fn get(&self, path: &str) -> Option<Self> {
        self.0.get(path).map(Self)
    }

    /// The module's own weights, by name.
    fn own_params(&self) -> Vec<(String, PyTensor)> {
        self.0.own_params().into_iter().map(|(name, param)| (name, PyTensor(param.get()))).collect()
    }

    /// The weights at and below the module, by their key in the checkpoint.
    fn params(&self) -> Vec<(String, PyTensor)> {
        self.0.state_dict().into_iter().map(|(key, tensor)| (key, PyTensor(tensor))).collect()
    }

    /// Puts tensors in the place of weights, each under its key in the checkpoint; nothing is copied. The caller has held
    /// their shapes to those of the weights.
    fn assign(&self, tensors: Vec<(String, PyTensor)>) -> PyResult<()> {
        let params: std::collections::HashMap<_, _> = self.0.params().into_iter().collect();
        if let Some((key, _)) = tensors.iter().find(|(key, _)| !params.contains_key(key)) {
            return Err(PyKeyError::new_err(key.clone()));
        }
        for (key, PyTensor(tensor)) in tensors {
            if let Some(param) = params.get(&key) {
                drop(param.replace(tensor));
            }
        }
        Ok(())
    }

    /// The dtype that is computed in.
    #[getter]
    fn dtype(&self) -> String {
        self.0.dtype().torch_name()
    }

    /// Where the weights lie.
    #[getter]
    fn device(&self) -> String {
        device_name(self.0.device())
    }

    /// Where a forward runs.
    #[getter]
    fn execution_device(&self) -> String {
        device_name(self.0.execution_device())
    }

    /// The names of the hooks around the module.
    #[getter]
    fn hook_names(&self) -> Vec<String> {
        self.0.hook_names()
    }

    /// Moves, casts and lays out the weights, as far as asked for.
    #[pyo3(signature = (device_name=None, dtype=None, format=None))]
    fn to(&self, py: Python<'_>, device_name: Option<&str>, dtype: Option<&str>, format: Option<&str>) -> PyResult<()> {
        let device = device_name.map(device).transpose()?;
        let dtype = dtype.map(kind).transpose()?;
        let format = format.map(memory_format).transpose()?;
        let node = self.0.clone();
        let change = move || {
            if let Some(device) = device {
                refuse_if_offloaded(&node, "the model cannot be moved")?;
                node.to_device(device)?;
            }
            dtype.map_or(Ok(()), |dtype| set_compute_dtype(&node, dtype))?;
            format.map_or(Ok(()), |format| node.to_memory_format(format))
        };
        py.detach(change).or_raise()
    }
}
