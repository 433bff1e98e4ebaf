//! TorchScript modules.
#![allow(unsafe_code)]

use super::{Message, checked, string, take_string};
use crate::error::{Error, Result};
use std::ffi::{CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tch::{Device, Kind, Tensor};

type Forward = extern "C" fn(context: *mut c_void, inputs: *mut c_void, outputs: *mut c_void) -> c_int;

unsafe extern "C" {
    fn tds_tensors_new() -> *mut c_void;
    fn tds_tensors_free(tensors: *mut c_void);
    fn tds_tensors_push(tensors: *mut c_void, tensor: *mut c_void);
    fn tds_tensors_size(tensors: *mut c_void) -> usize;
    fn tds_tensors_get(tensors: *mut c_void, index: usize) -> *mut c_void;
    fn tds_jit_trace(
        class_name: *const c_char,
        weight_names: *const *const c_char,
        weights: *mut c_void,
        input_names: *const *const c_char,
        inputs: *mut c_void,
        forward: Forward,
        context: *mut c_void,
        out: *mut *mut c_void,
        error: Message,
    ) -> c_int;
    fn tds_jit_load(
        path: *const c_char,
        device: c_int,
        key: *const c_char,
        out: *mut *mut c_void,
        note: Message,
        error: Message,
    ) -> c_int;
    fn tds_jit_save(
        module: *mut c_void,
        path: *const c_char,
        key: *const c_char,
        note: *const c_char,
        error: Message,
    ) -> c_int;
    fn tds_jit_free(module: *mut c_void);
    fn tds_jit_forward(module: *mut c_void, inputs: *mut c_void, outputs: *mut c_void, error: Message) -> c_int;
    fn tds_jit_freeze(module: *mut c_void, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_jit_optimize_for_inference(module: *mut c_void, out: *mut *mut c_void, error: Message) -> c_int;
    fn tds_jit_to_device(module: *mut c_void, device: c_int, error: Message) -> c_int;
    fn tds_jit_to_kind(module: *mut c_void, kind: c_int, error: Message) -> c_int;
    fn tds_jit_to_memory_format(module: *mut c_void, format: c_int, error: Message) -> c_int;
    fn tds_jit_parameters(module: *mut c_void, parameters: *mut c_void, names: Message, error: Message) -> c_int;
    fn tds_jit_arity(module: *mut c_void, out: *mut c_int, error: Message) -> c_int;
    fn tds_jit_tensor_constants(module: *mut c_void, out: *mut c_int, error: Message) -> c_int;
    fn tds_jit_graph(module: *mut c_void, out: Message, error: Message) -> c_int;
}

/// A `std::vector<at::Tensor>`.
pub(super) struct Tensors(pub(super) *mut c_void);

impl Tensors {
    pub(super) fn new<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        // SAFETY: takes nothing.
        let list = Self(unsafe { tds_tensors_new() });
        tensors.into_iter().for_each(|tensor| push(list.0, tensor));
        list
    }

    pub(super) fn to_vec(&self) -> Vec<Tensor> {
        read(self.0)
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: made by `tds_tensors_new`, freed once.
        unsafe { tds_tensors_free(self.0) }
    }
}

/// Puts a handle to `tensor` at the end of a list of the shim's.
fn push(list: *mut c_void, tensor: &Tensor) {
    // SAFETY: the list lives, and tch's pointer is an at::Tensor, of which the shim takes a handle.
    unsafe { tds_tensors_push(list, tensor.as_ptr().cast_mut().cast()) }
}

/// Handles to the tensors of a list of the shim's.
fn read(list: *mut c_void) -> Vec<Tensor> {
    // SAFETY: the list lives, the indices are below its size, and each handle is a new at::Tensor, which tch frees.
    unsafe { (0..tds_tensors_size(list)).map(|i| Tensor::from_ptr(tds_tensors_get(list, i).cast())).collect() }
}

/// What a trace runs, and what became of it.
struct Run<'a> {
    forward: &'a mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
    error: Option<Error>,
}

/// Called by libtorch's tracer, which an unwinding panic may not cross.
extern "C" fn run(context: *mut c_void, inputs: *mut c_void, outputs: *mut c_void) -> c_int {
    // SAFETY: `trace` passes a `Run` that it does not touch before the tracer has returned.
    let run = unsafe { &mut *context.cast::<Run<'_>>() };
    let made = catch_unwind(AssertUnwindSafe(|| (run.forward)(&read(inputs))));
    match made.unwrap_or_else(|_| Err(Error::Torch("the model panicked while it was traced".into()))) {
        Ok(made) => {
            made.iter().for_each(|tensor| push(outputs, tensor));
            0
        }
        Err(error) => {
            run.error = Some(error);
            1
        }
    }
}

pub(super) fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Argument(format!("{text:?} holds a NUL")))
}

pub(super) fn path_text(path: &Path) -> Result<CString> {
    let path = path.to_str();
    text(path.ok_or_else(|| Error::Argument("libtorch wants the paths of its files in UTF-8".into()))?)
}

pub(super) fn device_index(device: Device) -> Result<c_int> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(index) => Ok(c_int::try_from(index).unwrap_or(c_int::MAX)),
        other => Err(Error::Unsupported(format!("compiled modules run on the CPU or on CUDA, not on {other:?}"))),
    }
}

/// A `torch::jit::Module`.
#[derive(Debug)]
pub(in crate::torch) struct RawModule(*mut c_void);

// SAFETY: a module is a counted pointer to an object that libtorch lets any thread run.
unsafe impl Send for RawModule {}
// SAFETY: what changes a module takes `&mut self`; the executor behind `forward` has a lock of its own.
unsafe impl Sync for RawModule {}

impl RawModule {
    /// Records what `forward` does with `inputs`. The tensors of `weights` become the module's parameters where
    /// `forward` uses them, and them alone: a copy becomes a constant.
    pub(in crate::torch) fn trace(
        class_name: &str,
        weights: &[(String, Tensor)],
        inputs: &[(&str, &Tensor)],
        forward: &mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Self> {
        let class_name = text(class_name)?;
        let weight_names = weights.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let input_names = inputs.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let pointers = |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let (weight_names, input_names) = (pointers(&weight_names), pointers(&input_names));
        let weights = Tensors::new(weights.iter().map(|(_, weight)| weight));
        let inputs = Tensors::new(inputs.iter().map(|(_, input)| *input));
        let mut context = Run { forward, error: None };
        let made = Self::make(|out, error| {
            // SAFETY: every pointer outlives the call, and there are as many names as tensors.
            unsafe {
                tds_jit_trace(
                    class_name.as_ptr(),
                    weight_names.as_ptr(),
                    weights.0,
                    input_names.as_ptr(),
                    inputs.0,
                    run,
                    (&raw mut context).cast(),
                    out,
                    error,
                )
            }
        });
        match context.error {
            Some(error) => Err(error),
            None => made,
        }
    }

    /// Reads a file, and the note that was stored in it under `key`.
    pub(in crate::torch) fn load(path: &Path, device: Device, key: &str) -> Result<(Self, String)> {
        let (path, device, key) = (path_text(path)?, device_index(device)?, text(key)?);
        let mut note = std::ptr::null_mut();
        // SAFETY: every pointer outlives the call.
        let module = Self::make(|out, error| unsafe {
            tds_jit_load(path.as_ptr(), device, key.as_ptr(), out, &mut note, error)
        });
        Ok((module?, take_string(note)))
    }

    pub(in crate::torch) fn save(&mut self, path: &Path, key: &str, note: &str) -> Result<()> {
        let (path, key, note) = (path_text(path)?, text(key)?, text(note)?);
        // SAFETY: the pointer is a live module, and the strings outlive the call.
        checked(|error| unsafe { tds_jit_save(self.0, path.as_ptr(), key.as_ptr(), note.as_ptr(), error) })
    }

    pub(in crate::torch) fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (inputs, outputs) = (Tensors::new(inputs.iter().copied()), Tensors::new([]));
        // SAFETY: the pointer is a live module, and the lists outlive the call.
        checked(|error| unsafe { tds_jit_forward(self.0, inputs.0, outputs.0, error) })?;
        Ok(outputs.to_vec())
    }

    pub(in crate::torch) fn freeze(&mut self) -> Result<Self> {
        // SAFETY: the pointer is a live module.
        Self::make(|out, error| unsafe { tds_jit_freeze(self.0, out, error) })
    }

    pub(in crate::torch) fn optimize_for_inference(&self) -> Result<Self> {
        // SAFETY: the pointer is a live module.
        Self::make(|out, error| unsafe { tds_jit_optimize_for_inference(self.0, out, error) })
    }

    pub(in crate::torch) fn move_to(&mut self, device: Device) -> Result<()> {
        let device = device_index(device)?;
        // SAFETY: the pointer is a live module.
        checked(|error| unsafe { tds_jit_to_device(self.0, device, error) })
    }

    pub(in crate::torch) fn cast(&mut self, kind: Kind) -> Result<()> {
        // The numbers of c10::ScalarType.
        let scalar_type = match kind {
            Kind::Half => 5,
            Kind::Float => 6,
            Kind::Double => 7,
            Kind::BFloat16 => 15,
            other => return Err(Error::Unsupported(format!("TorchScript modules do not compute in dtype {other:?}"))),
        };
        // SAFETY: the pointer is a live module.
        checked(|error| unsafe { tds_jit_to_kind(self.0, scalar_type, error) })
    }

    pub(in crate::torch) fn lay_out(&mut self, format: c_int) -> Result<()> {
        // SAFETY: the pointer is a live module.
        checked(|error| unsafe { tds_jit_to_memory_format(self.0, format, error) })
    }

    pub(in crate::torch) fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let parameters = Tensors::new([]);
        // SAFETY: the pointer is a live module, and the list outlives the call.
        let names = string(|out, error| unsafe { tds_jit_parameters(self.0, parameters.0, out, error) })?;
        Ok(names.lines().map(String::from).zip(parameters.to_vec()).collect())
    }

    pub(in crate::torch) fn arity(&self) -> Result<usize> {
        let mut arity = 0;
        // SAFETY: the pointer is a live module, and `arity` outlives the call.
        checked(|error| unsafe { tds_jit_arity(self.0, &mut arity, error) })?;
        Ok(usize::try_from(arity).unwrap_or_default())
    }

    pub(in crate::torch) fn tensor_constants(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the pointer is a live module, and `count` outlives the call.
        checked(|error| unsafe { tds_jit_tensor_constants(self.0, &mut count, error) })?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    pub(in crate::torch) fn graph(&self) -> Result<String> {
        // SAFETY: the pointer is a live module.
        string(|out, error| unsafe { tds_jit_graph(self.0, out, error) })
    }

    fn make(call: impl FnOnce(*mut *mut c_void, Message) -> c_int) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        checked(|error| call(&mut out, error))?;
        Ok(Self(out))
    }
}

impl Drop for RawModule {
    fn drop(&mut self) {
        // SAFETY: made by `new Module`, freed once.
        unsafe { tds_jit_free(self.0) }
    }
}
