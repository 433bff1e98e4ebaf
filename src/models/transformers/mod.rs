//! Transformers, whole models and parts of UNets alike.

mod compiled_flux_transformer;
mod traced_flux_transformer;
mod transformer_2d;
mod transformer_flux;

pub use compiled_flux_transformer::CompiledFluxTransformer;
pub(crate) use compiled_flux_transformer::compile_shared;
pub use traced_flux_transformer::TracedFluxTransformer;
pub use transformer_2d::{Transformer2DConfig, Transformer2DModel};
pub use transformer_flux::{FluxInputs, FluxTransformer2DConfig, FluxTransformer2DModel};

use crate::error::Result;
use crate::models::To;
use crate::nn::Node;
use std::any::Any;
use std::fmt::Debug;
use tch::{Device, Kind, Tensor};

/// What a pipeline asks of FLUX.1's transformer: a [`FluxTransformer2DModel`], or whatever takes its place.
pub trait FluxTransformer: Debug + Send + Sync {
    /// The configuration, which says what the inputs are to be.
    fn config(&self) -> &FluxTransformer2DConfig;

    /// Predicts the velocity of the picture's tokens.
    ///
    /// # Errors
    /// If the inputs do not fit the configuration.
    fn forward(&self, inputs: &FluxInputs<'_>) -> Result<Tensor>;

    /// The dtype that the tokens are to have.
    fn dtype(&self) -> Kind;

    /// The device that the inputs are to be on: that of the weights, or that where offloading takes them.
    fn device(&self) -> Device;

    /// Moves, casts or re-lays the weights, in place.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] where there is no room, [`crate::Error::Unsupported`] where they are fixed.
    fn move_to(&self, target: To) -> Result<()>;

    /// The tree of modules, for techniques that walk it; `None` for a transformer that has none, such as a traced one.
    fn tree(&self) -> Option<&Node> {
        None
    }

    /// The model behind it, which a compiled transformer has as well; `None` for a transformer that has none, such as a traced
    /// one.
    fn model(&self) -> Option<&FluxTransformer2DModel> {
        None
    }

    /// The transformer itself, for those who know what it is.
    fn as_any(&self) -> &dyn Any;
}
