//! Weights from files.

mod checkpoint;
pub mod hub;
pub mod lora;
mod options;
mod safetensors_header;
mod save;
pub mod single_file;
mod tensor_bytes;

pub(crate) use checkpoint::is_below;
pub use checkpoint::{Checkpoint, CheckpointReport, KeyMap};
pub use hub::HubOptions;
pub use lora::{LoraOptions, LoraStateDict};
pub use options::LoadOptions;
pub use safetensors_header::{SafetensorsHeader, TensorEntry};
pub use save::{SaveOptions, StateDict, parse_size};
