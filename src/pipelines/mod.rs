//! Whole ways from a prompt to a picture, one folder each, named as in diffusers.

mod pipeline_utils;
pub mod stable_diffusion;

pub use pipeline_utils::{ModelIndex, Prompt};
