//! Transformers, whole models and parts of UNets alike.

mod transformer_2d;
mod transformer_flux;

pub use transformer_2d::{Transformer2DConfig, Transformer2DModel};
pub use transformer_flux::{FluxInputs, FluxTransformer2DConfig, FluxTransformer2DModel};
