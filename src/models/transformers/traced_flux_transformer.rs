//! FLUX.1's transformer from a TorchScript file, in the place of the model it was traced from.

use super::{FluxInputs, FluxTransformer, FluxTransformer2DConfig};
use crate::error::{Error, Result};
use crate::models::To;
use crate::models::tracing::Note;
use crate::torch::{KindExt, TracedModule};
use std::any::Any;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A traced transformer, made by [`trace`](crate::models::trace): it takes what [`FluxInputs`] holds, and has its configuration
/// with it. How many tokens text and picture have is that of the trace.
///
/// # Examples
/// ```no_run
/// use tch_diffusers::{FluxPipeline, models::transformers::TracedFluxTransformer};
/// let mut pipe = FluxPipeline::from_pretrained("black-forest-labs/FLUX.1-schnell").load()?;
/// pipe.set_transformer(TracedFluxTransformer::load("transformer_traced.pt", tch::Device::Cpu)?);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct TracedFluxTransformer {
    module: TracedModule,
    config: FluxTransformer2DConfig,
    /// What a frozen module computes in, and where, as its constants do not say it.
    place: (Kind, Device),
}

impl TracedFluxTransformer {
    /// Reads a file to `device`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Torch`] if it holds no module; else as
    /// [`TracedFluxTransformer::new`].
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let mut transformer = Self::new(TracedModule::load(path, device)?).map_err(|error| match error {
            Error::Argument(text) => Error::Argument(format!("{}: {text}", path.display())),
            other => other.in_file(path),
        })?;
        transformer.place.1 = device;
        Ok(transformer)
    }

    /// Takes a module that was traced in this process.
    ///
    /// # Errors
    /// [`Error::Argument`] if it was not traced by this library, or takes another number of inputs than its configuration
    /// says.
    pub fn new(module: TracedModule) -> Result<Self> {
        let broken = |error: serde_json::Error| Error::Config(error.to_string());
        if module.note().is_empty() {
            return Err(Error::Argument("the module has no configuration: trace it by `models::trace`".into()));
        }
        let note: Note = serde_json::from_str(module.note()).map_err(broken)?;
        if note.class != "FluxTransformer2DModel" {
            return Err(Error::Argument(format!("the module was traced from a {}", note.class)));
        }
        let config: FluxTransformer2DConfig = serde_json::from_value(note.config).map_err(broken)?;
        let (expected, found) = (if config.guidance_embeds { 7 } else { 6 }, module.num_inputs()?);
        if found != expected {
            return Err(Error::Argument(format!("the transformer takes {expected} inputs, but this module {found}")));
        }
        let kind = Kind::from_torch_name(&note.dtype)?;
        let place = (module.dtype()?.unwrap_or(kind), module.device()?.unwrap_or(Device::Cpu));
        Ok(Self { module, config, place })
    }

    /// The module itself, to freeze it or to look at its parameters.
    #[must_use]
    pub fn module(&self) -> &TracedModule {
        &self.module
    }
}

impl FluxTransformer for TracedFluxTransformer {
    fn config(&self) -> &FluxTransformer2DConfig {
        &self.config
    }

    fn forward(&self, inputs: &FluxInputs<'_>) -> Result<Tensor> {
        let (own, given) = (self.dtype(), inputs.hidden_states.f_kind()?);
        if own != given {
            let (own, given) = (own.torch_name(), given.torch_name());
            return Err(Error::Argument(format!("the traced transformer computes in {own}, but is given {given}")));
        }
        let mut tensors = vec![
            inputs.hidden_states,
            inputs.encoder_hidden_states,
            inputs.pooled_projections,
            inputs.timestep,
            inputs.img_ids,
            inputs.txt_ids,
        ];
        tensors.extend(inputs.guidance);
        let expected = if self.config.guidance_embeds { 7 } else { 6 };
        if tensors.len() != expected {
            return Err(Error::Argument(format!("the transformer takes {expected} inputs, got {}", tensors.len())));
        }
        let outputs = self.module.forward(&tensors)?;
        outputs.into_iter().next().ok_or(Error::Arity { expected: 1, found: 0 })
    }

    fn dtype(&self) -> Kind {
        self.module.dtype().ok().flatten().unwrap_or(self.place.0)
    }

    fn device(&self) -> Device {
        self.module.device().ok().flatten().unwrap_or(self.place.1)
    }

    fn move_to(&self, target: To) -> Result<()> {
        match target {
            // What is there already needs no moving, which a frozen module could not do.
            To::Device(device) if device == self.device() => Ok(()),
            To::Device(device) => self.module.to_device(device),
            To::Kind(kind) if kind == self.dtype() => Ok(()),
            To::Kind(kind) => self.module.to_kind(kind),
            To::MemoryFormat(format) => self.module.to_memory_format(format),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
