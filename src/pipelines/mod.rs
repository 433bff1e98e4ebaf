//! Whole ways from a prompt to a picture, one folder each, named as in diffusers.

mod auto_pipeline;
pub mod flux;
mod generators;
mod loading;
mod memory_report;
mod parts;
mod pipeline_mixin;
mod pipeline_utils;
pub mod stable_diffusion;

pub use auto_pipeline::{AsNamed, AutoPipelineForText2Image, DiffusionPipeline, DiffusionPipelineLoader, FromText};
pub use loading::PipelineLoader;
pub use memory_report::{CallMemory, MemoryReport, Saving, StageMemory};
pub use parts::{Parts, PipelineModel};
pub use pipeline_mixin::PipelineMixin;
pub use pipeline_utils::{ModelIndex, Prompt};
