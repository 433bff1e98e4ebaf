//! Pipelines found by what their folder says.
//!
//! Mirrors `DiffusionPipeline.from_pretrained` of `diffusers/pipelines/pipeline_utils.py` and `AutoPipelineForText2Image` of
//! `diffusers/pipelines/auto_pipeline.py` at 0.42.1.

use super::flux::{FluxLoader, FluxPipeline};
use super::loading::Source;
use super::stable_diffusion::{
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionLoader, StableDiffusionPipeline,
};
use super::{MemoryReport, ModelIndex, Parts, PipelineLoader, PipelineModel};
use crate::error::{Error, Result};
use crate::hooks::ModelOffload;
use crate::loaders::SaveOptions;
use crate::models::To;
use crate::models::autoencoders::AutoencoderKL;
use crate::schedulers::Scheduler;
use std::path::Path;
use tch::Device;

const FLUX: &str = FluxPipeline::CLASS_NAME;
const STABLE_DIFFUSION: &str = "StableDiffusionPipeline";
const STABLE_DIFFUSION_IMG2IMG: &str = "StableDiffusionImg2ImgPipeline";
const STABLE_DIFFUSION_INPAINT: &str = "StableDiffusionInpaintPipeline";

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
    /// Text to picture with FLUX.1.
    Flux(Box<FluxPipeline>),
}

/// What `from_pretrained` of [`DiffusionPipeline`] may be told; `load` does it. `K` says which pipeline is wanted of those
/// that the folder serves.
pub type DiffusionPipelineLoader<K = AsNamed> = PipelineLoader<DiffusionPipeline, K>;

/// The pipeline that the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsNamed;

/// The pipeline that draws from text, whichever the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromText;

/// Pipelines from text to picture, found by what their folder says.
#[derive(Clone, Copy, Debug)]
pub struct AutoPipelineForText2Image;

impl AutoPipelineForText2Image {
    /// As [`DiffusionPipeline::from_pretrained`]; a folder of image-to-image or inpainting gives the pipeline from text that
    /// has the same components.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> DiffusionPipelineLoader<FromText> {
        PipelineLoader::new(folder.as_ref())
    }
}

impl PipelineLoader<DiffusionPipeline, AsNamed> {
    /// Reads the pipeline that the folder's `model_index.json` names.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a class that is not there; else as for that pipeline.
    pub fn load(mut self) -> Result<DiffusionPipeline> {
        self.source.download(&[])?;
        let class_name = class_name(&self.source)?;
        load(self.source, &class_name)
    }
}

impl PipelineLoader<DiffusionPipeline, FromText> {
    /// Reads the pipeline from text that serves the class that the folder's `model_index.json` names.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a class that is not there; else as for that pipeline.
    pub fn load(mut self) -> Result<DiffusionPipeline> {
        self.source.download(&[])?;
        let class_name = class_name(&self.source)?;
        let from_text = match class_name.as_str() {
            STABLE_DIFFUSION_IMG2IMG | STABLE_DIFFUSION_INPAINT => STABLE_DIFFUSION,
            other => other,
        };
        load(self.source, from_text)
    }
}

fn class_name(source: &Source) -> Result<String> {
    Ok(ModelIndex::from_folder(&source.folder)?.class_name().to_string())
}

fn load(source: Source, class_name: &str) -> Result<DiffusionPipeline> {
    let folder = source.folder.display().to_string();
    Ok(match class_name {
        STABLE_DIFFUSION => DiffusionPipeline::StableDiffusion(Box::new(StableDiffusionLoader::of(source).load()?)),
        STABLE_DIFFUSION_IMG2IMG => {
            DiffusionPipeline::StableDiffusionImg2Img(Box::new(StableDiffusionLoader::of(source).load()?))
        }
        STABLE_DIFFUSION_INPAINT => {
            DiffusionPipeline::StableDiffusionInpaint(Box::new(StableDiffusionLoader::of(source).load()?))
        }
        FLUX => DiffusionPipeline::Flux(Box::new(FluxLoader::of(source).load()?)),
        other => {
            let known = [STABLE_DIFFUSION, STABLE_DIFFUSION_IMG2IMG, STABLE_DIFFUSION_INPAINT, FLUX].join(", ");
            return Err(Error::Unsupported(format!("{folder}: the folder holds a {other}; there are {known}")));
        }
    })
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
            Self::StableDiffusion(_) => STABLE_DIFFUSION,
            Self::StableDiffusionImg2Img(_) => STABLE_DIFFUSION_IMG2IMG,
            Self::StableDiffusionInpaint(_) => STABLE_DIFFUSION_INPAINT,
            Self::Flux(_) => FLUX,
        }
    }

    /// The noise schedule and its solver.
    pub fn scheduler_mut(&mut self) -> &mut Box<dyn Scheduler> {
        match self {
            Self::StableDiffusion(pipe) => &mut pipe.scheduler,
            Self::StableDiffusionImg2Img(pipe) => &mut pipe.scheduler,
            Self::StableDiffusionInpaint(pipe) => &mut pipe.scheduler,
            Self::Flux(pipe) => &mut pipe.scheduler,
        }
    }

    /// Moves all models to a device, casts them to a dtype, or lays them out in a memory format.
    ///
    /// # Errors
    /// As of the pipeline itself.
    pub fn to(&mut self, target: impl Into<To>) -> Result<()> {
        match self {
            Self::StableDiffusion(pipe) => pipe.to(target),
            Self::StableDiffusionImg2Img(pipe) => pipe.to(target),
            Self::StableDiffusionInpaint(pipe) => pipe.to(target),
            Self::Flux(pipe) => pipe.to(target),
        }
    }

    /// Where the work is done: where the models lie, or where offloading takes them.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::StableDiffusion(pipe) => pipe.device(),
            Self::StableDiffusionImg2Img(pipe) => pipe.device(),
            Self::StableDiffusionInpaint(pipe) => pipe.device(),
            Self::Flux(pipe) => pipe.device(),
        }
    }

    /// What the models' weights take and how they lie, what the last call took, and what techniques save.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn memory_report(&self) -> Result<MemoryReport> {
        match self {
            Self::StableDiffusion(pipe) => pipe.memory_report(),
            Self::StableDiffusionImg2Img(pipe) => pipe.memory_report(),
            Self::StableDiffusionInpaint(pipe) => pipe.memory_report(),
            Self::Flux(pipe) => pipe.memory_report(),
        }
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
        match self {
            Self::StableDiffusion(pipe) => pipe.save_pretrained_with(folder, options),
            Self::StableDiffusionImg2Img(pipe) => pipe.save_pretrained_with(folder, options),
            Self::StableDiffusionInpaint(pipe) => pipe.save_pretrained_with(folder, options),
            Self::Flux(pipe) => pipe.save_pretrained_with(folder, options),
        }
    }

    fn parts(&self) -> &dyn Parts {
        match self {
            Self::StableDiffusion(pipe) => pipe.as_ref(),
            Self::StableDiffusionImg2Img(pipe) => &***pipe,
            Self::StableDiffusionInpaint(pipe) => &***pipe,
            Self::Flux(pipe) => pipe.as_ref(),
        }
    }

    fn parts_mut(&mut self) -> &mut dyn Parts {
        match self {
            Self::StableDiffusion(pipe) => pipe.as_mut(),
            Self::StableDiffusionImg2Img(pipe) => &mut ***pipe,
            Self::StableDiffusionInpaint(pipe) => &mut ***pipe,
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

impl From<FluxPipeline> for DiffusionPipeline {
    fn from(pipe: FluxPipeline) -> Self {
        Self::Flux(Box::new(pipe))
    }
}
