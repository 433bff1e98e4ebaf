//! TorchScript modules: tracing into them, and running, changing and storing them.
//!
//! Mirrors `torch.jit.trace`, `load`, `save`, `freeze` and `optimize_for_inference` of torch 2.11.

use super::ffi::jit::RawModule;
use super::{KindExt, MemoryFormat};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tch::{Device, Kind, Tensor};

/// Where a file holds the note that is stored with it.
const NOTE: &str = "tch_diffusers.json";

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is recording a trace, in which tensors that are no weights become constants.
#[must_use]
pub fn is_tracing() -> bool {
    TRACING.get()
}

/// What was recorded of a model's forward, with its weights: a `torch.jit.ScriptModule`.
///
/// It runs without the model's own code, here and in Python.
#[derive(Debug)]
pub struct TracedModule {
    module: RwLock<RawModule>,
    note: String,
    /// Whether it was optimised for this machine, which no file can hold.
    optimized: bool,
}

impl TracedModule {
    /// Records what `forward` does with `inputs`.
    ///
    /// The tensors of `weights` become the module's parameters under their dotted names, so that Python finds them in its
    /// `state_dict()`. `forward` has to use these very tensors: copies, and all others that it uses, become constants, which
    /// do not follow where the module is moved. So does every number that `forward` reads from a tensor's shape. The module
    /// returns a tuple of what `forward` returns.
    ///
    /// # Errors
    /// Whatever `forward` fails with.
    pub fn trace(
        class_name: &str,
        weights: &[(String, Tensor)],
        inputs: &[(&str, &Tensor)],
        mut forward: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        TRACING.set(true);
        let module = RawModule::trace(class_name, weights, inputs, &mut forward);
        TRACING.set(false);
        Ok(Self::new(module?, String::new()))
    }

    /// With a note for who reads the module's file; see [`TracedModule::note`].
    #[must_use]
    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// What was written down with the module; `""` for a file of Python's.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Reads a TorchScript file, of Python's `save` or of [`TracedModule::save`]. The weights go to `device`, in the dtype
    /// that they have in the file.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Torch`] if it holds no module, [`Error::OutOfMemory`] where the
    /// device has no room.
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let path = path.as_ref();
        std::fs::metadata(path).map_err(Error::io(path))?;
        let (module, note) = RawModule::load(path, device, NOTE).map_err(|error| named(error, path))?;
        Ok(Self::new(module, note))
    }

    /// Writes the module and its note to `path` by way of a temporary file beside it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written; [`Error::Unsupported`] for what [`TracedModule::optimize_for_inference`] made.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        if self.optimized {
            return Err(Error::Unsupported(
                "a module that was optimised for inference holds weights in this machine's own layout and cannot be saved: \
                 save it before"
                    .into(),
            ));
        }
        let path = path.as_ref();
        let temporary = path.with_extension("pt.tmp");
        std::fs::File::create(&temporary).map_err(Error::io(path))?;
        self.write().save(&temporary, NOTE, &self.note).map_err(|error| named(error, path))?;
        std::fs::rename(&temporary, path).map_err(Error::io(path))
    }

    /// Runs the module. A tuple, list or dict that it returns comes flat.
    ///
    /// # Errors
    /// If the inputs do not fit what was recorded.
    pub fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let _no_grad = tch::no_grad_guard();
        self.read().forward(inputs).map_err(brief)
    }

    /// The module with its weights as constants, so that what depends on them alone is computed once: `torch.jit.freeze`.
    /// It has no parameters, and can be moved and cast no more.
    ///
    /// # Errors
    /// If it is frozen already.
    pub fn freeze(&self) -> Result<Self> {
        Ok(Self::new(self.write().freeze()?, self.note.clone()))
    }

    /// The module rewritten for this machine: `torch.jit.optimize_for_inference`. It is frozen, and cannot be saved.
    ///
    /// # Errors
    /// If libtorch cannot rewrite it.
    pub fn optimize_for_inference(&self) -> Result<Self> {
        let module = self.read().optimize_for_inference()?;
        Ok(Self { optimized: true, ..Self::new(module, self.note.clone()) })
    }

    /// Moves the parameters to `device`. Constants stay where they were when the module was traced or loaded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Unsupported`] for a frozen module.
    pub fn to_device(&self, device: Device) -> Result<()> {
        self.refuse_if_frozen("moved")?;
        self.write().move_to(device)
    }

    /// Casts the parameters of floating point to `kind`. Dtypes that the trace recorded stay as they are.
    ///
    /// # Errors
    /// As [`TracedModule::to_device`].
    pub fn to_kind(&self, kind: Kind) -> Result<()> {
        self.refuse_if_frozen("cast")?;
        self.write().cast(kind)
    }

    /// Lays the parameters of four dimensions out in `format`.
    ///
    /// # Errors
    /// As [`TracedModule::to_device`].
    pub fn to_memory_format(&self, format: MemoryFormat) -> Result<()> {
        self.refuse_if_frozen("laid out anew")?;
        let number = match format {
            MemoryFormat::Contiguous => 0,
            MemoryFormat::ChannelsLast => 2,
        };
        self.write().lay_out(number)
    }

    /// The parameters, by their dotted names; none if the module is frozen. Nothing is copied.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        self.read().parameters()
    }

    /// The dtype of the first floating-point parameter; `None` if the module is frozen.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn dtype(&self) -> Result<Option<Kind>> {
        let kinds = self.parameters()?.into_iter().map(|(_, parameter)| parameter.kind());
        Ok(kinds.into_iter().find(|kind| kind.is_floating_point()))
    }

    /// The device of the first parameter; `None` if the module is frozen.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn device(&self) -> Result<Option<Device>> {
        Ok(self.parameters()?.first().map(|(_, parameter)| parameter.device()))
    }

    /// How many tensors [`TracedModule::forward`] takes.
    ///
    /// # Errors
    /// If the module has no forward.
    pub fn num_inputs(&self) -> Result<usize> {
        self.read().arity()
    }

    /// How many tensors with dimensions the recorded operations hold as constants: those that were neither weights nor inputs
    /// when the module was traced, and weights once it is frozen.
    ///
    /// # Errors
    /// If the module has no forward.
    pub fn num_tensor_constants(&self) -> Result<usize> {
        self.read().tensor_constants()
    }

    /// The recorded operations, as TorchScript prints them.
    ///
    /// # Errors
    /// If the module has no forward.
    pub fn graph(&self) -> Result<String> {
        self.read().graph()
    }

    fn new(module: RawModule, note: String) -> Self {
        Self { module: RwLock::new(module), note, optimized: false }
    }

    fn refuse_if_frozen(&self, what: &str) -> Result<()> {
        match self.parameters()?.is_empty() {
            true => Err(Error::Unsupported(format!("a frozen module has no weights that could be {what}"))),
            false => Ok(()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, RawModule> {
        self.module.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RawModule> {
        self.module.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn named(error: Error, path: &Path) -> Error {
    match error {
        Error::Torch(text) => Error::Torch(format!("{}: {text}", path.display())),
        other => other,
    }
}

/// TorchScript's errors list every recorded operation on the way: what went wrong is their last line.
fn brief(error: Error) -> Error {
    match error {
        Error::Torch(text) if text.contains("TorchScript interpreter") => {
            tracing::debug!(target: "tch_diffusers::libtorch", "{text}");
            let reason = text.rsplit("RuntimeError: ").next().unwrap_or(&text).trim();
            Error::Torch(format!("the traced module failed: {reason}"))
        }
        other => other,
    }
}
