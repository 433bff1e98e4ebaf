//! Diffusion models on libtorch: the Hugging Face diffusers API in Rust.

pub mod configuration_utils;
pub mod error;
pub mod loaders;
pub mod models;
pub mod nn;
pub mod pipelines;
pub mod schedulers;
pub mod torch;
pub mod utils;

pub use error::{Error, Result};
pub use torch::{DeviceExt, Generator, KindExt, MemoryFormat, TensorExt};
