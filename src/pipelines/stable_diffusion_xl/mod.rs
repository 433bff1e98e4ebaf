//! Stable Diffusion XL (Podell et al. 2023, "SDXL", arXiv:2307.01952).

mod arguments;
mod call;
mod denoise;
mod latents;
mod loading;
mod micro_conditioning;
mod pipeline_stable_diffusion_xl;
mod pipeline_stable_diffusion_xl_img2img;
mod task;
mod text;

pub use call::{StableDiffusionXLCall, StableDiffusionXLPipelineOutput};
pub use denoise::StableDiffusionXLStepEnd;
pub use loading::{PassedStableDiffusionXLComponents, StableDiffusionXLLoader};
pub use pipeline_stable_diffusion_xl::{StableDiffusionXLComponents, StableDiffusionXLPipeline};
pub use pipeline_stable_diffusion_xl_img2img::{
    ImageToImage, StableDiffusionXLImg2ImgCall, StableDiffusionXLImg2ImgPipeline,
};
pub use task::{TakesSize, TextToImage};
