//! A UNet from a TorchScript file, in the place of the model it was traced from.
//!
//! Mirrors the class `TracedUNet` of diffusers' documentation, which its users write themselves.

use super::{UNet, UNet2DConditionConfig, UNetInputs};
use crate::error::{Error, Result};
use crate::models::To;
use crate::models::tracing::Note;
use crate::torch::{KindExt, TracedModule};
use std::any::Any;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A traced UNet: `torch.jit.trace` of diffusers' model in Python, or [`trace`](crate::models::trace) of this library's.
///
/// It takes sample, timestep and text, in this order, and of SDXL's kind `text_embeds` and `time_ids` as well, and returns the
/// prediction, bare or first in a tuple. What it cannot
/// know of itself, the configuration of a file made in Python, it takes over from the pipeline that it is put into.
///
/// # Examples
/// ```no_run
/// use tch_diffusers::{StableDiffusionPipeline, models::unets::TracedUNet};
/// let mut pipe = StableDiffusionPipeline::from_pretrained("stable-diffusion-v1-5").load()?;
/// pipe.set_unet(TracedUNet::load("unet_traced.pt")?);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct TracedUNet {
    module: TracedModule,
    config: UNet2DConditionConfig,
    /// Whether `config` came with the file.
    own_config: bool,
    /// Whether it takes SDXL's inputs.
    takes_added: bool,
    /// What a frozen module computes in, and where, as its constants do not say it.
    place: (Kind, Device),
}

impl TracedUNet {
    /// Reads a file to the CPU.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Torch`] if it holds no module, [`Error::Argument`] if it takes another
    /// number of inputs.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_to(path, Device::Cpu)
    }

    /// Reads a file to `device`.
    ///
    /// # Errors
    /// As [`TracedUNet::load`].
    pub fn load_to(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let mut unet = Self::new(TracedModule::load(path, device)?).map_err(|error| match error {
            Error::Argument(text) => Error::Argument(format!("{}: {text}", path.display())),
            Error::Config(text) => Error::Config(format!("{}: {text}", path.display())),
            other => other,
        })?;
        unet.place.1 = device;
        Ok(unet)
    }

    /// Takes a module that was traced in this process.
    ///
    /// # Errors
    /// [`Error::Argument`] if it takes neither three tensors nor five.
    pub fn new(module: TracedModule) -> Result<Self> {
        let inputs = module.num_inputs()?;
        if inputs != 3 && inputs != 5 {
            return Err(Error::Argument(format!(
                "a traced UNet takes sample, timestep and encoder_hidden_states, and of SDXL's kind text_embeds and time_ids, \
                 but this module takes {inputs} inputs"
            )));
        }
        let note: Option<Note> = match module.note() {
            "" => None,
            note => Some(serde_json::from_str(note).map_err(|error| Error::Config(error.to_string()))?),
        };
        let kind = note.as_ref().map(|note| Kind::from_torch_name(&note.dtype)).transpose()?;
        let place = (module.dtype()?.or(kind).unwrap_or(Kind::Float), module.device()?.unwrap_or(Device::Cpu));
        let own_config = note.is_some();
        let config = note.map(|note| serde_json::from_value(note.config));
        let config = config.transpose().map_err(|error| Error::Config(error.to_string()))?.unwrap_or_default();
        Ok(Self { module, config, own_config, takes_added: inputs == 5, place })
    }

    /// The module itself, to freeze it or to look at its parameters.
    #[must_use]
    pub fn module(&self) -> &TracedModule {
        &self.module
    }

    fn check(&self, inputs: &UNetInputs<'_>) -> Result<()> {
        let more = [
            ("class_labels", inputs.class_labels.is_some()),
            ("timestep_cond", inputs.timestep_cond.is_some()),
            ("attention_mask", inputs.attention_mask.is_some()),
            ("encoder_attention_mask", inputs.encoder_attention_mask.is_some()),
            ("added_cond_kwargs", inputs.added_cond.is_some() && !self.takes_added),
            ("down_block_additional_residuals", inputs.down_block_additional_residuals.is_some()),
            ("mid_block_additional_residual", inputs.mid_block_additional_residual.is_some()),
        ];
        if let Some((name, _)) = more.iter().find(|(_, given)| *given) {
            return Err(Error::Unsupported(format!(
                "a traced UNet takes sample, timestep and encoder_hidden_states, and no `{name}`"
            )));
        }
        let (own, given) = (self.dtype(), inputs.sample.kind());
        if own != given {
            let (own, given) = (own.torch_name(), given.torch_name());
            return Err(Error::Argument(format!(
                "the traced UNet computes in {own}, but is given {given}: load the pipeline with dtype {own}, or cast the \
                 UNet to {given}"
            )));
        }
        Ok(())
    }
}

impl UNet for TracedUNet {
    fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    fn forward(&self, inputs: &UNetInputs<'_>) -> Result<Tensor> {
        self.check(inputs)?;
        // Without dimensions, as pipelines of diffusers pass it: a trace of either form takes that.
        let timestep = match inputs.timestep.size()[..] {
            [1] => inputs.timestep.f_squeeze()?,
            _ => inputs.timestep.shallow_clone(),
        };
        let mut given = vec![inputs.sample, &timestep, inputs.encoder_hidden_states];
        if let Some(added) = inputs.added_cond {
            given.extend([added.text_embeds, added.time_ids]);
        } else if self.takes_added {
            let text = "this traced UNet is of SDXL's kind and needs `text_embeds` and `time_ids`";
            return Err(Error::Argument(text.into()));
        }
        let outputs = self.module.forward(&given)?;
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

    fn adopt(&mut self, config: &UNet2DConditionConfig) {
        if !self.own_config {
            self.config = config.clone();
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
