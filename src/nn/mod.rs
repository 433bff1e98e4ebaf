//! The module tree, and the layers that models are made of.
//!
//! A model is a plain struct of layers. While it is built, each layer takes a [`Node`] from its [`Scope`]; the nodes
//! form one tree whose dotted paths are the checkpoint's own keys. Everything that is not arithmetic (moving, casting,
//! saving, offloading) is a walk of that tree, or a [`Hook`] around one of its nodes.

mod activation;
mod conv;
mod embedding;
mod fused_linear;
mod hook;
mod linear;
mod lora;
mod node;
mod norm;
mod scope;
mod shared;

pub use activation::Activation;
pub(crate) use conv::adopt_convolutions;
pub use conv::{Conv2d, Conv2dConfig, set_use_winograd, set_weights_prepack, uses_winograd, weights_prepack};
pub use embedding::Embedding;
pub use fused_linear::FusedLinear;
pub use hook::{BroughtWeights, Hook, Next};
pub use linear::Linear;
pub use lora::{Fusion, LORA_HOOK, LoraLayer, LoraScale, LoraWeights, lora_dtype, lora_shapes, replace_lora_scale};
pub(crate) use node::Setting;
pub use node::{Module, Node, Param};
pub use norm::{GroupNorm, LayerNorm, RMSNorm};
pub use scope::{RandomWeights, Scope, Weights};
pub use shared::SharedWeights;
