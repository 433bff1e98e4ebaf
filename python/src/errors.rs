//! The library's errors as Python's exceptions.

use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyKeyError, PyNotImplementedError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use tch_diffusers::Error;

/// The exception that a Python program catches for `error`; its message names the module.
pub(crate) fn raise(error: Error) -> PyErr {
    let text = error.to_string();
    match error.kind() {
        Error::OutOfMemory(_) => Python::attach(|py| out_of_memory(py, text)),
        Error::Shape(_) | Error::Argument(_) | Error::Config(_) | Error::WeightShape { .. } | Error::Tokenizer(_) => {
            PyValueError::new_err(text)
        }
        Error::Unsupported(_) => PyNotImplementedError::new_err(text),
        Error::MissingWeights { .. } => PyKeyError::new_err(text),
        Error::Hub(_) => PyOSError::new_err(text),
        // With a number, Python makes it a FileNotFoundError, a PermissionError ...
        Error::Io { path, source } => match source.raw_os_error().or(not_found(source)) {
            Some(number) => PyOSError::new_err((number, source.to_string(), path.display().to_string())),
            None => PyOSError::new_err(text),
        },
        _ => PyRuntimeError::new_err(text),
    }
}

/// The number of an error that was made without one.
fn not_found(error: &std::io::Error) -> Option<i32> {
    const ENOENT: i32 = 2;
    (error.kind() == std::io::ErrorKind::NotFound).then_some(ENOENT)
}

fn out_of_memory(py: Python<'_>, text: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "torch", "OutOfMemoryError") {
        Ok(class) => PyErr::from_type(class.clone(), text),
        Err(_) => PyErr::from_type(pyo3::exceptions::PyMemoryError::type_object(py), text),
    }
}

/// `map_err(raise)`, shorter.
pub(crate) trait OrRaise<T> {
    /// The value, or the error as an exception.
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for tch_diffusers::Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(raise)
    }
}
