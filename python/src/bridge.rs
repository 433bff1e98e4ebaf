//! Tensors and generators from Python and back, without a copy. The only unsafe code of the package.
//!
//! A `torch.Tensor` says in `_cdata` where its `TensorImpl` lies, and `torch._C._wrap_tensor_impl` hands out the Python object
//! of a `TensorImpl`: the very same one if there is one. These two need neither Python's headers nor torch's, so that one
//! abi3 library serves every Python, and they are what out-of-tree backends of torch use. DLPack, the standard, is no choice:
//! it loses the object's identity and knows no float8 before its version 1.1.
#![allow(unsafe_code)]

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::ffi::c_void;
use tch::Tensor;
use tch_diffusers::Generator;

/// A `torch.Tensor` as argument or result.
pub(crate) struct PyTensor(pub(crate) Tensor);

/// A `torch.Generator` as argument: numbers drawn here are drawn from it.
pub(crate) struct PyGenerator(pub(crate) Generator);

fn class<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyType>>, name: &str) -> PyResult<&'py Bound<'py, PyType>> {
    cell.import(py, "torch", name)
}

/// The address in `object._cdata`, of an object that is a `class`.
fn address(object: &Bound<'_, PyAny>, class: &Bound<'_, PyType>, name: &str) -> PyResult<usize> {
    if !object.is_instance(class)? {
        let found = object.get_type().fully_qualified_name()?;
        return Err(PyTypeError::new_err(format!("a torch.{name} is expected, not {found}")));
    }
    object.getattr(pyo3::intern!(object.py(), "_cdata"))?.extract()
}

impl<'py> FromPyObject<'_, 'py> for PyTensor {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let address = address(&object, class(object.py(), &CLASS, "Tensor")?, "Tensor")?;
        let handle: *mut c_void = (&raw const address).cast_mut().cast();
        // SAFETY: an at::Tensor is one counted pointer to a TensorImpl, so that `handle` points to a valid one. It is only
        // copied, which counts the new handle; `object` keeps the TensorImpl alive until then.
        Ok(Self(unsafe { Tensor::clone_from_ptr(handle.cast()) }))
    }
}

impl<'py> IntoPyObject<'py> for PyTensor {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static WRAP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let wrap = WRAP.import(py, "torch._C", "_wrap_tensor_impl")?;
        // SAFETY: tch's pointer is an at::Tensor, which is one pointer to its TensorImpl; `self` keeps both alive to the end
        // of the function. The capsule has neither name nor destructor: it only carries the address.
        let capsule = unsafe {
            let implementation: *mut c_void = self.0.as_ptr().cast::<*mut c_void>().read();
            Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(implementation, std::ptr::null(), None))?
        };
        wrap.call1((capsule,))
    }
}

impl<'py> FromPyObject<'_, 'py> for PyGenerator {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let address = address(&object, class(object.py(), &CLASS, "Generator")?, "Generator")?;
        // SAFETY: the address is that of a GeneratorImpl, which `object` keeps alive during the call.
        let generator = unsafe { Generator::share(address) };
        Ok(Self(generator.map_err(crate::errors::raise)?))
    }
}

/// The tensors of a list.
pub(crate) fn tensors(list: Vec<PyTensor>) -> Vec<Tensor> {
    list.into_iter().map(|PyTensor(tensor)| tensor).collect()
}

/// The generators of a list.
pub(crate) fn generators(list: Vec<PyGenerator>) -> Vec<Generator> {
    list.into_iter().map(|PyGenerator(generator)| generator).collect()
}
