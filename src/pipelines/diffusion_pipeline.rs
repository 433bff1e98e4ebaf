//! A pipeline of any kind.

use super::auto_pipeline::DiffusionPipelineLoader;
use super::flux::FluxPipeline;
use super::stable_diffusion::{
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
};
use super::stable_diffusion_xl::{StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline};
use super::{MemoryReport, Parts, PipelineLoader, PipelineModel};
use crate::error::Result;
use crate::hooks::ModelOffload;
use crate::loaders::SaveOptions;
use crate::models::To;
use crate::models::autoencoders::AutoencoderKL;
use crate::schedulers::Scheduler;
use std::path::Path;
use tch::Device;

/// A pipeline of any kind there is. Techniques are switched on as for each of them, by
/// [`PipelineMixin`](super::PipelineMixin); a call needs to know which it is.
///
/// # Examples
/// ```
/// use tch_diffusers::{DiffusionPipeline, utils::assets::bundled_model};
/// let pipe = DiffusionPipeline::from_pretrained(bundled_model()?).load()?;
/// assert_eq!(pipe.class_name(), "StableDiffusionPipeline");
/// let DiffusionPipeline::StableDiffusion(mut pipe) = pipe else { panic!("the bundled model is a Stable Diffusion") };
/// pipe.call("a red circle on a blue background").num_inference_steps(2).seed(0).run()?;
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum DiffusionPipeline {
    /// Text to picture with Stable Diffusion.
    StableDiffusion(Box<StableDiffusionPipeline>),
    /// Picture to picture with Stable Diffusion.
    StableDiffusionImg2Img(Box<StableDiffusionImg2ImgPipeline>),
    /// A part of a picture drawn anew with Stable Diffusion.
    StableDiffusionInpaint(Box<StableDiffusionInpaintPipeline>),
    /// Text to picture with Stable Diffusion XL.
    StableDiffusionXL(Box<StableDiffusionXLPipeline>),
    /// Picture to picture with Stable Diffusion XL.
    StableDiffusionXLImg2Img(Box<StableDiffusionXLImg2ImgPipeline>),
    /// Text to picture with FLUX.1.
    Flux(Box<FluxPipeline>),
}

/// Does the same with whichever pipeline it is.
macro_rules! with_each {
    ($self:expr, $pipe:ident => $work:expr) => {
        match $self {
            Self::StableDiffusion($pipe) => $work,
            Self::StableDiffusionImg2Img($pipe) => $work,
            Self::StableDiffusionInpaint($pipe) => $work,
            Self::StableDiffusionXL($pipe) => $work,
            Self::StableDiffusionXLImg2Img($pipe) => $work,
            Self::Flux($pipe) => $work,
        }
    };
}

impl DiffusionPipeline {
    /// Reads the pipeline that diffusers wrote to `folder`, of the class that its `model_index.json` names. Where there is no
    /// such folder, `owner/name` is a repository of the Hub: see [`HubOptions`](crate::loaders::HubOptions).
    pub fn from_pretrained(folder: impl AsRef<Path>) -> DiffusionPipelineLoader {
        PipelineLoader::new(folder.as_ref())
    }

    /// diffusers' name of the pipeline's class.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::StableDiffusion(_) => StableDiffusionPipeline::CLASS_NAME,
            Self::StableDiffusionImg2Img(_) => StableDiffusionImg2ImgPipeline::CLASS_NAME,
            Self::StableDiffusionInpaint(_) => StableDiffusionInpaintPipeline::CLASS_NAME,
            Self::StableDiffusionXL(_) => StableDiffusionXLPipeline::CLASS_NAME,
            Self::StableDiffusionXLImg2Img(_) => StableDiffusionXLImg2ImgPipeline::CLASS_NAME,
            Self::Flux(_) => FluxPipeline::CLASS_NAME,
        }
    }

    /// The noise schedule and its solver.
    pub fn scheduler_mut(&mut self) -> &mut Box<dyn Scheduler> {
        with_each!(self, pipe => &mut pipe.scheduler)
    }

    /// Moves all models to a device, casts them to a dtype, or lays them out in a memory format.
    ///
    /// # Errors
    /// As of the pipeline itself.
    pub fn to(&mut self, target: impl Into<To>) -> Result<()> {
        with_each!(self, pipe => pipe.to(target))
    }

    /// Where the work is done: where the models lie, or where offloading takes them.
    #[must_use]
    pub fn device(&self) -> Device {
        with_each!(self, pipe => pipe.device())
    }

    /// What the models' weights take and how they lie, what the last call took, and what techniques save.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn memory_report(&self) -> Result<MemoryReport> {
        with_each!(self, pipe => pipe.memory_report())
    }

    /// Writes the pipeline to `folder`, so that diffusers reads it back.
    ///
    /// # Errors
    /// As of the pipeline itself.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(folder, &SaveOptions::default())
    }

    /// As [`DiffusionPipeline::save_pretrained`], with a limit for the size of each file of weights, or a variant in their
    /// names.
    ///
    /// # Errors
    /// As of the pipeline itself.
    pub fn save_pretrained_with(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        with_each!(self, pipe => pipe.save_pretrained_with(folder, options))
    }

    fn parts(&self) -> &dyn Parts {
        match self {
            Self::StableDiffusion(pipe) => pipe.as_ref(),
            Self::StableDiffusionImg2Img(pipe) => &***pipe,
            Self::StableDiffusionInpaint(pipe) => &***pipe,
            Self::StableDiffusionXL(pipe) => pipe.as_ref(),
            Self::StableDiffusionXLImg2Img(pipe) => &***pipe,
            Self::Flux(pipe) => pipe.as_ref(),
        }
    }

    fn parts_mut(&mut self) -> &mut dyn Parts {
        match self {
            Self::StableDiffusion(pipe) => pipe.as_mut(),
            Self::StableDiffusionImg2Img(pipe) => &mut ***pipe,
            Self::StableDiffusionInpaint(pipe) => &mut ***pipe,
            Self::StableDiffusionXL(pipe) => pipe.as_mut(),
            Self::StableDiffusionXLImg2Img(pipe) => &mut ***pipe,
            Self::Flux(pipe) => pipe.as_mut(),
        }
    }
}

impl Parts for DiffusionPipeline {
    fn models(&self) -> Vec<PipelineModel> {
        self.parts().models()
    }

    fn denoiser(&self, technique: &str) -> Result<PipelineModel> {
        self.parts().denoiser(technique)
    }

    fn autoencoder(&self) -> &AutoencoderKL {
        self.parts().autoencoder()
    }

    fn autoencoder_mut(&mut self) -> &mut AutoencoderKL {
        self.parts_mut().autoencoder_mut()
    }

    fn model_offload(&self) -> Option<&ModelOffload> {
        self.parts().model_offload()
    }

    fn model_offload_mut(&mut self) -> &mut Option<ModelOffload> {
        self.parts_mut().model_offload_mut()
    }
}

impl From<StableDiffusionPipeline> for DiffusionPipeline {
    fn from(pipe: StableDiffusionPipeline) -> Self {
        Self::StableDiffusion(Box::new(pipe))
    }
}

impl From<StableDiffusionImg2ImgPipeline> for DiffusionPipeline {
    fn from(pipe: StableDiffusionImg2ImgPipeline) -> Self {
        Self::StableDiffusionImg2Img(Box::new(pipe))
    }
}

impl From<StableDiffusionInpaintPipeline> for DiffusionPipeline {
    fn from(pipe: StableDiffusionInpaintPipeline) -> Self {
        Self::StableDiffusionInpaint(Box::new(pipe))
    }
}

impl From<StableDiffusionXLPipeline> for DiffusionPipeline {
    fn from(pipe: StableDiffusionXLPipeline) -> Self {
        Self::StableDiffusionXL(Box::new(pipe))
    }
}

impl From<StableDiffusionXLImg2ImgPipeline> for DiffusionPipeline {
    fn from(pipe: StableDiffusionXLImg2ImgPipeline) -> Self {
        Self::StableDiffusionXLImg2Img(Box::new(pipe))
    }
}

impl From<FluxPipeline> for DiffusionPipeline {
    fn from(pipe: FluxPipeline) -> Self {
        Self::Flux(Box::new(pipe))
    }
}
