//! Checkpoints of Stable Diffusion in one file.

use crate::arguments::to_json;
use crate::bridge::PyTensor;
use crate::errors::OrRaise;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use tch::Device;
use tch_diffusers::loaders::single_file::check_single_file;

/// What is known of a file: the repository of its tokenizer, whether a safety checker is missed where there is none, and its
/// components' configurations as JSON.
#[pyfunction]
pub(crate) fn single_file_known(path: PathBuf) -> PyResult<(String, bool, HashMap<String, String>)> {
    let model = check_single_file(&path).and_then(|file| file.model_type()).or_raise()?;
    let configs = [
        ("unet", model.unet_config()),
        ("vae", model.vae_config()),
        ("text_encoder", model.text_encoder_config()),
        ("scheduler", model.scheduler_config()),
    ];
    let configs = configs.into_iter().map(|(name, config)| Ok((name.to_string(), to_json(&config)?)));
    Ok((model.repository().into(), model.requires_safety_checker(), configs.collect::<PyResult<_>>()?))
}

/// The weights of one of the models in a file, by the model's own keys: views of the file.
#[pyfunction]
pub(crate) fn single_file_weights(py: Python<'_>, path: PathBuf, model: &str) -> PyResult<Vec<(String, PyTensor)>> {
    let read = || check_single_file(&path)?.checkpoint(model, None, Device::Cpu)?.state_dict();
    let weights = py.detach(read).or_raise()?;
    Ok(weights.into_iter().map(|(key, weight)| (key, PyTensor(weight))).collect())
}
