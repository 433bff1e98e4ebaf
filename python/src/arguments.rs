//! Arguments that both sides spell out: dtypes, devices, memory formats, configurations.

use crate::errors::OrRaise;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tch::{Device, Kind};
use tch_diffusers::configuration_utils::ConfigMap;
use tch_diffusers::{DeviceExt, KindExt, MemoryFormat};

/// The dtype called `name`, such as `torch.float16`.
pub(crate) fn kind(name: &str) -> PyResult<Kind> {
    Kind::from_torch_name(name).or_raise()
}

/// The device called `name`, such as `cuda:0`.
pub(crate) fn device(name: &str) -> PyResult<Device> {
    Device::from_torch_name(name).or_raise()
}

/// The memory format called `name`, such as `torch.channels_last`.
pub(crate) fn memory_format(name: &str) -> PyResult<MemoryFormat> {
    name.strip_prefix("torch.").unwrap_or(name).parse().or_raise()
}

/// The name of `device` as torch spells it.
pub(crate) fn device_name(device: Device) -> String {
    device.torch_name()
}

/// A configuration from its JSON.
pub(crate) fn config(json: &str) -> PyResult<ConfigMap> {
    serde_json::from_str(json).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// A configuration as JSON.
pub(crate) fn to_json<T: serde::Serialize>(config: &T) -> PyResult<String> {
    serde_json::to_string(config).map_err(|error| PyValueError::new_err(error.to_string()))
}
