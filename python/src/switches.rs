//! Facts about the library. libtorch's switches are the process's, so that `torch.backends` sets them for both.

use crate::errors::OrRaise;
use pyo3::prelude::*;
use std::path::PathBuf;
use tch_diffusers::{torch, utils};

/// The version of libtorch that the extension was built for.
#[pyfunction]
pub(crate) fn libtorch_version() -> PyResult<String> {
    torch::libtorch_version().or_raise()
}

/// The folder of the bundled text-to-image model.
#[pyfunction]
pub(crate) fn bundled_model() -> PyResult<PathBuf> {
    utils::assets::bundled_model().or_raise()
}
