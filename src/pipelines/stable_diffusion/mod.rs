//! Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752).

mod arguments;
mod call;
mod conditioning;
mod denoise;
mod loading;
mod lora;
mod memory_estimate;
mod memory_report;
mod parts;
mod pipeline_stable_diffusion;
mod pipeline_stable_diffusion_img2img;
mod pipeline_stable_diffusion_inpaint;
mod safety;
mod safety_checker;
mod share;
mod single_file;
mod task;
mod traced;

pub use crate::pipelines::guidance::{get_guidance_scale_embedding, rescale_noise_cfg};
pub use crate::pipelines::memory_report::{CallMemory, MemoryReport, Saving, StageMemory};
pub use call::{StableDiffusionCall, StableDiffusionPipelineOutput};
pub use denoise::StepEnd;
pub use loading::{FromComponents, StableDiffusionLoader};
pub use lora::{AdapterWeight, CrossAttentionKwargs, FuseLora, LORA_LOADABLE_MODULES};
pub use pipeline_stable_diffusion::{Components, StableDiffusionPipeline};
pub use pipeline_stable_diffusion_img2img::{ImageToImage, StableDiffusionImg2ImgCall, StableDiffusionImg2ImgPipeline};
pub use pipeline_stable_diffusion_inpaint::{Inpainting, StableDiffusionInpaintCall, StableDiffusionInpaintPipeline};
pub use safety_checker::{SafetyCheckerConfig, SafetyScores, StableDiffusionSafetyChecker};
pub use single_file::SingleFileLoader;
pub use task::{TakesSize, TextToImage};
