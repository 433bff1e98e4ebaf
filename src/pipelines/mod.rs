//! Whole ways from a prompt to a picture, one folder each, named as in diffusers.

mod auto_pipeline;
mod checks;
mod diffusion_pipeline;
pub mod flux;
mod generators;
mod guidance;
mod image_latents;
mod loading;
mod memory_report;
mod parts;
mod pipeline_mixin;
mod pipeline_utils;
mod shared_methods;
pub mod stable_diffusion;
pub mod stable_diffusion_xl;
mod strength;
mod two_prompts;

pub use auto_pipeline::{
    AsNamed, AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image, DiffusionPipelineLoader,
    FromImage, FromMask, FromText, Wanted,
};
pub use diffusion_pipeline::DiffusionPipeline;
pub use loading::PipelineLoader;
pub use memory_report::{CallMemory, MemoryReport, Saving, StageMemory};
pub use parts::{Parts, PipelineModel};
pub use pipeline_mixin::PipelineMixin;
pub use pipeline_utils::{ModelIndex, Prompt};
pub use two_prompts::PooledPromptEmbeds;
