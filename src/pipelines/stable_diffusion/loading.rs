//! `StableDiffusionPipeline::from_pretrained`.

use super::{Components, StableDiffusionPipeline, StableDiffusionSafetyChecker};
use crate::error::{Error, Result};
use crate::image_processor::CLIPImageProcessor;
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel};
use crate::pipelines::loading::{Source, optional};
use crate::pipelines::shared_methods::passes_components;
use crate::pipelines::{ModelIndex, PipelineLoader};
use crate::schedulers::Scheduler;

/// The pipelines whose components are the same.
pub(in crate::pipelines) const CLASS_NAMES: [&str; 3] =
    ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"];

/// What `feature_extractor` may be called.
const FEATURE_EXTRACTORS: [&str; 4] =
    [CLIPImageProcessor::CLASS_NAME, "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];

/// How many models there are beside a safety checker.
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
    /// Outside: whether anything was said. Inside: whether there is to be one.
    safety_checker: Option<Option<StableDiffusionSafetyChecker>>,
    feature_extractor: Option<CLIPImageProcessor>,
    requires_safety_checker: Option<bool>,
}

/// A pipeline that Stable Diffusion's components make.
pub trait FromComponents: From<StableDiffusionPipeline> {
    /// An option of the scheduler, and the value that it had at the time of the first releases, which is brought up to date.
    const OUTDATED_OPTION: (&'static str, bool);
}

impl<P: FromComponents> PipelineLoader<P, PassedComponents> {
    passes_components! {
        /// Uses this VAE.
        vae: AutoencoderKL,
        /// Uses this text encoder.
        text_encoder: CLIPTextModel,
        /// Uses this tokenizer.
        tokenizer: CLIPTokenizer,
        /// Uses this scheduler.
        scheduler: Box<dyn Scheduler>,
        /// Uses this safety checker, or with `None` does without: then the folder's is not read.
        safety_checker: Option<StableDiffusionSafetyChecker>,
        /// Uses this feature extractor.
        feature_extractor: CLIPImageProcessor,
        /// Whether the lack of a safety checker is worth a warning; by default what the folder says, and otherwise yes.
        requires_safety_checker: bool,
    }

    /// Uses this UNet.
    pub fn unet(mut self, unet: impl UNet + 'static) -> Self {
        self.passed.unet = Some(Box::new(unet));
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
            ("safety_checker", self.passed.safety_checker.is_some()),
            ("feature_extractor", self.passed.feature_extractor.is_some()),
        ])?;
        let index = self.source.index(&CLASS_NAMES)?;
        self.check(&index)?;
        let Self { source, passed, .. } = self;
        let bar = source.progress_bar.start(6, "loading");
        let scheduler = passed.scheduler.map_or_else(|| source.scheduler(), Ok)?;
        bar.inc(1);
        let tokenizer = || CLIPTokenizer::from_pretrained(source.folder.join("tokenizer"));
        let tokenizer = passed.tokenizer.map_or_else(tokenizer, Ok)?;
        bar.inc(1);
        let text_encoder = passed.text_encoder.map_or_else(|| source.model("text_encoder", MODELS), Ok)?;
        bar.inc(1);
        let unet = match passed.unet {
            Some(unet) => source.adopted(unet)?,
            None => Box::new(source.model::<UNet2DConditionModel>("unet", MODELS)?),
        };
        bar.inc(1);
        let vae = passed.vae.map_or_else(|| source.model("vae", MODELS), Ok)?;
        bar.inc(1);
        let safety_checker = optional(&index, "safety_checker", passed.safety_checker, || source.safety_checker())?;
        let feature_extractor = match passed.feature_extractor {
            Some(feature_extractor) => Some(feature_extractor),
            None => source.feature_extractor(&index, safety_checker.is_some())?,
        };
        bar.finish_and_clear();
        let said = passed.requires_safety_checker.or(index.flag("requires_safety_checker"));
        let requires_safety_checker = said.unwrap_or(true);
        let components = Components {
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            requires_safety_checker,
        };
        let mut pipeline = StableDiffusionPipeline::of(components, P::OUTDATED_OPTION)?;
        pipeline.progress_bar = source.progress_bar;
        Ok(pipeline.into())
    }

    /// Holds the folder's index to what is supported, before any weights are read.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        let passed = &self.passed;
        index.require_all(&[
            ("unet", passed.unet.is_some(), &[UNet2DConditionModel::CLASS_NAME]),
            ("vae", passed.vae.is_some(), &[AutoencoderKL::CLASS_NAME]),
            ("text_encoder", passed.text_encoder.is_some(), &[CLIPTextModel::CLASS_NAME]),
            ("tokenizer", passed.tokenizer.is_some(), &["CLIPTokenizer", "CLIPTokenizerFast"]),
        ])?;
        index.require_those_there(&[(
            "safety_checker",
            passed.safety_checker.is_some(),
            &[StableDiffusionSafetyChecker::CLASS_NAME],
        )])?;
        self.source.check_variant(&[
            ("text_encoder", CLIPTextModel::WEIGHTS_STEM),
            ("unet", UNet2DConditionModel::WEIGHTS_STEM),
            ("vae", AutoencoderKL::WEIGHTS_STEM),
        ])
    }
}

impl Source {
    /// Reads the safety checker.
    fn safety_checker(&self) -> Result<StableDiffusionSafetyChecker> {
        self.model("safety_checker", MODELS + 1).map_err(|error| match error {
            Error::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => Error::Config(format!(
                "{}: there is no such file: the model's safety checker is missing; load the model without one, by \
                 `safety_checker(None)`, if you can do without",
                path.display()
            )),
            other => other,
        })
    }

    /// The folder's feature extractor; none is missed where nobody needs it.
    fn feature_extractor(&self, index: &ModelIndex, needed: bool) -> Result<Option<CLIPImageProcessor>> {
        if needed && index.component("feature_extractor").is_some() {
            index.require("feature_extractor", &FEATURE_EXTRACTORS)?;
        }
        let known = index.component("feature_extractor").is_some_and(|class| FEATURE_EXTRACTORS.contains(&class));
        match CLIPImageProcessor::from_pretrained(self.folder.join("feature_extractor")) {
            _ if !known => Ok(None),
            Ok(extractor) => Ok(Some(extractor)),
            Err(error) if needed => Err(error),
            Err(error) => {
                tracing::debug!("the feature extractor is left out: {error}");
                Ok(None)
            }
        }
    }
}
