//! The Hub: which files of a repository are needed, and bringing them here where `huggingface_hub` is not installed.

use crate::arguments::config;
use crate::errors::OrRaise;
use pyo3::prelude::*;
use std::path::PathBuf;
use tch_diffusers::loaders::{HubOptions, hub};
use tch_diffusers::models::{ModelMixin, autoencoders, text_encoders};

/// What `from_pretrained` is told about the Hub.
#[derive(Default, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Access {
    revision: Option<String>,
    token: Option<String>,
    cache_dir: Option<PathBuf>,
    local_files_only: bool,
}

impl Access {
    pub(crate) fn options(self) -> HubOptions {
        let Self { revision, token, cache_dir, local_files_only } = self;
        HubOptions { revision, token, cache_dir, local_files_only, ..HubOptions::default() }
    }
}

/// What the files of weights are called that come from diffusers, or from transformers.
fn stem(of_transformers: bool) -> &'static str {
    if of_transformers { text_encoders::CLIPTextModel::WEIGHTS_STEM } else { autoencoders::AutoencoderKL::WEIGHTS_STEM }
}

/// The files that a pipeline with this `model_index.json` is read from.
#[pyfunction]
#[pyo3(signature = (id, files, index, variant=None, passed=vec![]))]
pub(crate) fn pipeline_files(
    id: &str,
    files: Vec<String>,
    index: &str,
    variant: Option<&str>,
    passed: Vec<String>,
) -> PyResult<Vec<String>> {
    let passed: Vec<_> = passed.iter().map(String::as_str).collect();
    hub::pipeline_files(id, &files, &config(index)?, variant, &passed).or_raise()
}

/// The files that a model is read from.
#[pyfunction]
#[pyo3(signature = (id, files, of_transformers, subfolder=None, variant=None))]
pub(crate) fn model_files(
    id: &str,
    files: Vec<String>,
    of_transformers: bool,
    subfolder: Option<&str>,
    variant: Option<&str>,
) -> PyResult<Vec<String>> {
    hub::model_files(id, &files, subfolder, stem(of_transformers), variant).or_raise()
}

/// The folder of a pipeline, after its files came from the Hub.
#[pyfunction]
#[pyo3(signature = (name, access, variant=None, passed=vec![]))]
pub(crate) fn pipeline_folder(
    py: Python<'_>,
    name: PathBuf,
    access: Access,
    variant: Option<String>,
    passed: Vec<String>,
) -> PyResult<PathBuf> {
    let hub = access.options();
    let passed: Vec<_> = passed.iter().map(String::as_str).collect();
    py.detach(|| hub.pipeline_folder(&name, variant.as_deref(), &passed)).or_raise()
}

/// The folder around a model's, after its files came from the Hub.
#[pyfunction]
#[pyo3(signature = (name, access, of_transformers, subfolder=None, variant=None))]
pub(crate) fn model_folder(
    py: Python<'_>,
    name: PathBuf,
    access: Access,
    of_transformers: bool,
    subfolder: Option<String>,
    variant: Option<String>,
) -> PyResult<PathBuf> {
    let hub = access.options();
    let stem = stem(of_transformers);
    py.detach(|| hub.model_folder(&name, subfolder.as_deref(), stem, variant.as_deref())).or_raise()
}
