//! AOTInductor packages.
#![allow(unsafe_code)]

use super::jit::{Tensors, device_index, path_text, text};
use super::{Message, checked, string};
use crate::error::Result;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use tch::{Device, Tensor};

unsafe extern "C" {
    fn tds_aoti_record(path: *const c_char, record: *const c_char, out: Message, error: Message) -> c_int;
    fn tds_aoti_load(
        path: *const c_char,
        name: *const c_char,
        device: c_int,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_aoti_free(model: *mut c_void);
    fn tds_aoti_constants(model: *mut c_void, out: Message, error: Message) -> c_int;
    fn tds_aoti_bind(model: *mut c_void, names: *const *const c_char, weights: *mut c_void, error: Message) -> c_int;
    fn tds_aoti_run(model: *mut c_void, inputs: *mut c_void, outputs: *mut c_void, error: Message) -> c_int;
}

/// The text stored in the package at `path` under `record`; empty if there is none.
pub(in crate::torch) fn record(path: &Path, record: &str) -> Result<String> {
    let (path, record) = (path_text(path)?, text(record)?);
    // SAFETY: the strings outlive the call.
    string(|out, error| unsafe { tds_aoti_record(path.as_ptr(), record.as_ptr(), out, error) })
}

/// The code of one model of a package, and the names of its weights in the order in which they are bound.
#[derive(Debug)]
pub(in crate::torch) struct RawAotiModel {
    model: *mut c_void,
    names: Vec<CString>,
}

// SAFETY: the code belongs to no thread; what runs or changes it takes `&mut self`.
unsafe impl Send for RawAotiModel {}

impl RawAotiModel {
    /// Loads the model `name` of the package at `path`, whose weights will be bound in the order of `weights`.
    pub(in crate::torch) fn load(path: &Path, name: &str, device: Device, weights: &[String]) -> Result<Self> {
        let (path, name, device) = (path_text(path)?, text(name)?, device_index(device)?);
        let names = weights.iter().map(|name| text(name)).collect::<Result<_>>()?;
        let mut model = std::ptr::null_mut();
        // SAFETY: every pointer outlives the call.
        checked(|error| unsafe { tds_aoti_load(path.as_ptr(), name.as_ptr(), device, &mut model, error) })?;
        Ok(Self { model, names })
    }

    /// The names of the weights that the code asks for.
    pub(in crate::torch) fn constants(&self) -> Result<Vec<String>> {
        // SAFETY: the pointer is a live model.
        let names = string(|out, error| unsafe { tds_aoti_constants(self.model, out, error) })?;
        Ok(names.lines().map(String::from).collect())
    }

    /// Runs the code over `weights`, which are as many as [`RawAotiModel::load`] was given names and exactly of the shapes,
    /// dtypes, strides and device that the code was made for. `bound` says that they are where they were at the last call.
    pub(in crate::torch) fn run(
        &mut self,
        weights: &[&Tensor],
        bound: bool,
        inputs: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        debug_assert_eq!(weights.len(), self.names.len());
        if !bound {
            let names: Vec<_> = self.names.iter().map(|name| name.as_ptr()).collect();
            let list = Tensors::new(weights.iter().copied());
            // SAFETY: the model lives, and there is a name for each of the weights, which `self.run` below outlives.
            checked(|error| unsafe { tds_aoti_bind(self.model, names.as_ptr(), list.0, error) })?;
        }
        let (inputs, outputs) = (Tensors::new(inputs.iter().copied()), Tensors::new([]));
        // SAFETY: the model and the lists live, and so do the weights, which the caller borrows to this call.
        checked(|error| unsafe { tds_aoti_run(self.model, inputs.0, outputs.0, error) })?;
        Ok(outputs.to_vec())
    }
}

impl Drop for RawAotiModel {
    fn drop(&mut self) {
        // SAFETY: made by `new Model`, freed once.
        unsafe { tds_aoti_free(self.model) }
    }
}
