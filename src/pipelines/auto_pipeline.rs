//! Pipelines found by what their folder says.
//!
//! Mirrors `DiffusionPipeline.from_pretrained` of `diffusers/pipelines/pipeline_utils.py`, and
//! `diffusers/pipelines/auto_pipeline.py`, at 0.42.1.

use super::flux::{FluxLoader, FluxPipeline};
use super::loading::Source;
use super::stable_diffusion::{
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionLoader, StableDiffusionPipeline,
};
use super::stable_diffusion_xl::{
    StableDiffusionXLImg2ImgPipeline, StableDiffusionXLLoader, StableDiffusionXLPipeline,
};
use super::{DiffusionPipeline, ModelIndex, PipelineLoader};
use crate::error::{Error, Result};
use std::path::Path;

const FLUX: &str = FluxPipeline::CLASS_NAME;
const SDXL: &str = StableDiffusionXLPipeline::CLASS_NAME;
const SDXL_IMG2IMG: &str = StableDiffusionXLImg2ImgPipeline::CLASS_NAME;
const SD: &str = StableDiffusionPipeline::CLASS_NAME;
const SD_IMG2IMG: &str = StableDiffusionImg2ImgPipeline::CLASS_NAME;
const SD_INPAINT: &str = StableDiffusionInpaintPipeline::CLASS_NAME;

/// All classes there are.
const CLASSES: [&str; 6] = [SD, SD_IMG2IMG, SD_INPAINT, SDXL, SDXL_IMG2IMG, FLUX];

/// What `from_pretrained` of [`DiffusionPipeline`] may be told; `load` does it. `K` says which pipeline is wanted of those
/// that the folder serves.
pub type DiffusionPipelineLoader<K = AsNamed> = PipelineLoader<DiffusionPipeline, K>;

/// Which pipeline is wanted of those that a folder serves.
pub trait Wanted: Default {
    /// The class to load for a folder of class `class_name`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none of that kind for the model.
    fn class_for(class_name: &str) -> Result<&'static str>;
}

/// The pipeline that the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsNamed;

/// The pipeline that draws from text, whichever the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromText;

/// The pipeline that draws from a picture, whichever the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromImage;

/// The pipeline that draws a part of a picture anew, whichever the folder names.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromMask;

impl Wanted for AsNamed {
    fn class_for(class_name: &str) -> Result<&'static str> {
        CLASSES
            .into_iter()
            .find(|class| *class == class_name)
            .ok_or_else(|| unsupported(class_name, "pipelines", &CLASSES))
    }
}

impl Wanted for FromText {
    fn class_for(class_name: &str) -> Result<&'static str> {
        match class_name {
            SD | SD_IMG2IMG | SD_INPAINT => Ok(SD),
            SDXL | SDXL_IMG2IMG => Ok(SDXL),
            FLUX => Ok(FLUX),
            other => Err(unsupported(other, "pipelines from text", &[SD, SDXL, FLUX])),
        }
    }
}

impl Wanted for FromImage {
    fn class_for(class_name: &str) -> Result<&'static str> {
        match class_name {
            SD | SD_IMG2IMG | SD_INPAINT => Ok(SD_IMG2IMG),
            SDXL | SDXL_IMG2IMG => Ok(SDXL_IMG2IMG),
            other => Err(unsupported(other, "pipelines from a picture", &[SD_IMG2IMG, SDXL_IMG2IMG])),
        }
    }
}

impl Wanted for FromMask {
    fn class_for(class_name: &str) -> Result<&'static str> {
        match class_name {
            SD | SD_IMG2IMG | SD_INPAINT => Ok(SD_INPAINT),
            other => Err(unsupported(other, "pipelines of inpainting", &[SD_INPAINT])),
        }
    }
}

fn unsupported(class_name: &str, kind: &str, there_are: &[&str]) -> Error {
    Error::Unsupported(format!("the model's pipeline is a {class_name}; of {kind} there are {}", there_are.join(", ")))
}

/// Declares a class of pipelines found by their folder, as diffusers has one for each task.
macro_rules! auto_pipeline {
    ($(#[$doc:meta])* $name:ident, $wanted:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl $name {
            /// Reads the pipeline for this task that has the components of the folder's. Where there is no such folder,
            /// `owner/name` is a repository of the Hub: see [`HubOptions`](crate::loaders::HubOptions).
            pub fn from_pretrained(folder: impl AsRef<Path>) -> DiffusionPipelineLoader<$wanted> {
                PipelineLoader::new(folder.as_ref())
            }

            /// The pipeline for this task with the components of another one and with what is switched on there. They move:
            /// no weight is copied.
            ///
            /// # Errors
            /// [`Error::Unsupported`] if the model has no pipeline for the task.
            pub fn from_pipe(pipe: impl Into<DiffusionPipeline>) -> Result<DiffusionPipeline> {
                let pipe = pipe.into();
                let class_name = $wanted::class_for(pipe.class_name())?;
                convert(pipe, class_name)
            }
        }
    };
}

auto_pipeline!(
    /// Pipelines from text to picture.
    AutoPipelineForText2Image,
    FromText
);
auto_pipeline!(
    /// Pipelines from picture to picture.
    AutoPipelineForImage2Image,
    FromImage
);
auto_pipeline!(
    /// Pipelines that draw a part of a picture anew.
    AutoPipelineForInpainting,
    FromMask
);

impl<K: Wanted> PipelineLoader<DiffusionPipeline, K> {
    /// Reads the pipeline.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a class that is not there, or that has no pipeline for what is wanted; else as for
    /// that pipeline.
    pub fn load(mut self) -> Result<DiffusionPipeline> {
        self.source.download(&[])?;
        let index = ModelIndex::from_folder(&self.source.folder)?;
        let class_name = K::class_for(index.class_name()).map_err(|error| error.in_file(&self.source.folder))?;
        load(self.source, class_name)
    }
}

fn load(source: Source, class_name: &'static str) -> Result<DiffusionPipeline> {
    Ok(match class_name {
        SD => StableDiffusionLoader::<StableDiffusionPipeline>::of(source).load()?.into(),
        SD_IMG2IMG => StableDiffusionLoader::<StableDiffusionImg2ImgPipeline>::of(source).load()?.into(),
        SD_INPAINT => StableDiffusionLoader::<StableDiffusionInpaintPipeline>::of(source).load()?.into(),
        SDXL => StableDiffusionXLLoader::<StableDiffusionXLPipeline>::of(source).load()?.into(),
        SDXL_IMG2IMG => StableDiffusionXLLoader::<StableDiffusionXLImg2ImgPipeline>::of(source).load()?.into(),
        FLUX => FluxLoader::of(source).load()?.into(),
        other => return Err(unsupported(other, "pipelines", &CLASSES)),
    })
}

/// The same components as a pipeline of class `class_name`, which is one of the same model.
fn convert(pipe: DiffusionPipeline, class_name: &'static str) -> Result<DiffusionPipeline> {
    use DiffusionPipeline as Pipe;
    let sd: StableDiffusionPipeline = match pipe {
        Pipe::StableDiffusion(pipe) => *pipe,
        Pipe::StableDiffusionImg2Img(pipe) => (*pipe).into(),
        Pipe::StableDiffusionInpaint(pipe) => (*pipe).into(),
        Pipe::StableDiffusionXL(pipe) if class_name == SDXL => return Ok(Pipe::StableDiffusionXL(pipe)),
        Pipe::StableDiffusionXL(pipe) => return Ok(StableDiffusionXLImg2ImgPipeline::from_pipe(*pipe).into()),
        Pipe::StableDiffusionXLImg2Img(pipe) if class_name == SDXL => {
            return Ok(StableDiffusionXLPipeline::from_pipe(*pipe).into());
        }
        other => return Ok(other),
    };
    Ok(match class_name {
        SD_IMG2IMG => StableDiffusionImg2ImgPipeline::from_pipe(sd).into(),
        SD_INPAINT => StableDiffusionInpaintPipeline::from_pipe(sd).into(),
        _ => sd.into(),
    })
}
