//! The networks that look at pictures: what diffusers takes from transformers.

mod clip_vision;
mod clip_vision_config;

pub use clip_vision::{CLIPVisionModel, CLIPVisionModelOutput};
pub use clip_vision_config::CLIPVisionConfig;
