//! Transformers, whole models and parts of UNets alike.

mod transformer_2d;

pub use transformer_2d::{Transformer2DConfig, Transformer2DModel};
