//! A text encoder and a VAE's decoder from TorchScript files.

use crate::error::{Error, Result};
use crate::torch::TracedModule;
use std::path::Path;
use tch::{Device, Tensor};

/// A model of one input from a TorchScript file: a text encoder, of `input_ids`, or a VAE's decoder, of latents.
///
/// Made by [`trace`](crate::models::trace), or by `torch.jit.trace` in Python of a model whose first output is the one that
/// counts: `last_hidden_state`, or the picture.
#[derive(Debug)]
pub struct TracedModel(TracedModule);

impl TracedModel {
    /// Reads a file to `device`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Torch`] if it holds no module, [`Error::Argument`] if it takes another
    /// number of inputs.
    pub fn load(path: impl AsRef<Path>, device: Device) -> Result<Self> {
        Self::new(TracedModule::load(path, device)?)
    }

    /// Takes a module that was traced in this process.
    ///
    /// # Errors
    /// [`Error::Argument`] if it does not take one tensor.
    pub fn new(module: TracedModule) -> Result<Self> {
        match module.num_inputs()? {
            1 => Ok(Self(module)),
            inputs => Err(Error::Argument(format!(
                "a traced text encoder or decoder takes one tensor, but this module takes {inputs}"
            ))),
        }
    }

    /// The module itself.
    #[must_use]
    pub fn module(&self) -> &TracedModule {
        &self.0
    }

    /// The first of the module's outputs.
    ///
    /// # Errors
    /// If the input does not fit what was recorded.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.0.forward(&[input])?.into_iter().next().ok_or(Error::Arity { expected: 1, found: 0 })
    }
}
