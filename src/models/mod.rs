//! The networks, one file each, named as in diffusers.

pub mod activations;
pub mod attention;
pub mod attention_dispatch;
pub mod attention_processor;
mod auto_model;
pub mod autoencoders;
pub mod compile;
pub mod downsampling;
pub mod embeddings;
pub mod image_encoders;
pub mod memory;
mod modeling_utils;
pub mod normalization;
pub mod resnet;
mod sharing;
pub mod text_encoders;
pub mod text_time_embeddings;
pub mod traced;
mod tracing;
pub mod transformers;
pub mod unets;
pub mod upsampling;

pub use auto_model::AutoModel;
pub use modeling_utils::{ModelLoader, ModelMixin, To};
pub(crate) use sharing::share;
pub use tracing::{TraceOptions, Traceable, VaeDecoder, trace, trace_with};
