//! `StableDiffusionPipeline::from_pretrained`.

use super::{Components, StableDiffusionPipeline};
use crate::configuration_utils::{ConfigMap, from_map, read_json};
use crate::error::Result;
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel};
use crate::pipelines::{ModelIndex, PipelineLoader};
use crate::schedulers::Scheduler;

/// The pipelines whose components are the same.
pub(in crate::pipelines) const CLASS_NAMES: [&str; 3] =
    ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"];

/// How many models there are.
const MODELS: usize = 3;

/// What `from_pretrained` of Stable Diffusion's pipelines may be told; `load` does it. Folders of either kind serve all of
/// them.
pub type StableDiffusionLoader<P = StableDiffusionPipeline> = PipelineLoader<P, PassedComponents>;

/// The components that were passed in.
#[derive(Debug, Default)]
pub struct PassedComponents {
    vae: Option<AutoencoderKL>,
    text_encoder: Option<CLIPTextModel>,
    tokenizer: Option<CLIPTokenizer>,
    unet: Option<Box<dyn UNet>>,
    scheduler: Option<Box<dyn Scheduler>>,
}

impl<P: From<StableDiffusionPipeline>> PipelineLoader<P, PassedComponents> {
    /// Uses this VAE.
    pub fn vae(mut self, vae: AutoencoderKL) -> Self {
        self.passed.vae = Some(vae);
        self
    }

    /// Uses this text encoder.
    pub fn text_encoder(mut self, text_encoder: CLIPTextModel) -> Self {
        self.passed.text_encoder = Some(text_encoder);
        self
    }

    /// Uses this tokenizer.
    pub fn tokenizer(mut self, tokenizer: CLIPTokenizer) -> Self {
        self.passed.tokenizer = Some(tokenizer);
        self
    }

    /// Uses this UNet.
    pub fn unet(mut self, unet: impl UNet + 'static) -> Self {
        self.passed.unet = Some(Box::new(unet));
        self
    }

    /// Uses this scheduler.
    pub fn scheduler(mut self, scheduler: Box<dyn Scheduler>) -> Self {
        self.passed.scheduler = Some(scheduler);
        self
    }

    /// Reads what was not passed in, and puts the pipeline together.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Config`](crate::Error::Config) naming the file,
    /// [`Error::MissingWeights`](crate::Error::MissingWeights) or [`Error::WeightShape`](crate::Error::WeightShape) naming
    /// the keys, [`Error::Unsupported`](crate::Error::Unsupported) naming what the folder asks for and is not there;
    /// [`Error::Argument`](crate::Error::Argument) if no component has files of the variant; for a repository of the Hub
    /// also as [`HubOptions::pipeline_folder`](crate::loaders::HubOptions::pipeline_folder).
    pub fn load(mut self) -> Result<P> {
        // A UNet from elsewhere takes over the configuration of the folder's.
        self.source.download(&[
            ("vae", self.passed.vae.is_some()),
            ("text_encoder", self.passed.text_encoder.is_some()),
            ("tokenizer", self.passed.tokenizer.is_some()),
            ("scheduler", self.passed.scheduler.is_some()),
        ])?;
        self.check(&self.source.index(&CLASS_NAMES)?)?;
        let Self { source, passed, .. } = self;
        let bar = source.progress_bar.start(5, "loading");
        let scheduler = passed.scheduler.map_or_else(|| source.scheduler(), Ok)?;
        bar.inc(1);
        let tokenizer = || CLIPTokenizer::from_pretrained(source.folder.join("tokenizer"));
        let tokenizer = passed.tokenizer.map_or_else(tokenizer, Ok)?;
        bar.inc(1);
        let text_encoder = passed.text_encoder.map_or_else(|| source.model("text_encoder", MODELS), Ok)?;
        bar.inc(1);
        let unet = match passed.unet {
            Some(mut unet) => {
                let config = source.folder.join("unet/config.json");
                if config.is_file() {
                    unet.adopt(&from_map(&read_json::<ConfigMap>(&config)?)?);
                }
                unet
            }
            None => Box::new(source.model::<UNet2DConditionModel>("unet", MODELS)?),
        };
        bar.inc(1);
        let vae = passed.vae.map_or_else(|| source.model("vae", MODELS), Ok)?;
        bar.finish_and_clear();
        let components = Components { vae, text_encoder, tokenizer, unet, scheduler };
        let mut pipeline = StableDiffusionPipeline::new(components)?;
        pipeline.progress_bar = source.progress_bar;
        Ok(pipeline.into())
    }

    /// Holds the folder's index to what is supported, before any weights are read.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        if self.passed.unet.is_none() {
            index.require("unet", &[UNet2DConditionModel::CLASS_NAME])?;
        }
        if self.passed.vae.is_none() {
            index.require("vae", &[AutoencoderKL::CLASS_NAME])?;
        }
        if self.passed.text_encoder.is_none() {
            index.require("text_encoder", &[CLIPTextModel::CLASS_NAME])?;
        }
        if self.passed.tokenizer.is_none() {
            index.require("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        }
        if index.component("safety_checker").is_some() {
            tracing::warn!("the folder's safety checker is not run: this library has none yet");
        }
        self.source.check_variant(&[
            ("text_encoder", CLIPTextModel::WEIGHTS_STEM),
            ("unet", UNet2DConditionModel::WEIGHTS_STEM),
            ("vae", AutoencoderKL::WEIGHTS_STEM),
        ])
    }
}
