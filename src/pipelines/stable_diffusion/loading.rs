//! `StableDiffusionPipeline::from_pretrained`.

use super::{Components, StableDiffusionPipeline, StableDiffusionSafetyChecker};
use crate::configuration_utils::{ConfigMap, from_map, read_json};
use crate::error::{Error, Result};
use crate::hooks::GroupOffloading;
use crate::image_processor::CLIPImageProcessor;
use crate::loaders::{HubOptions, LoadOptions};
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel};
use crate::models::{ModelLoader, ModelMixin};
use crate::pipelines::ModelIndex;
use crate::schedulers::{Scheduler, scheduler_from_config};
use crate::utils::progress::ProgressBarConfig;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// The pipelines whose components are the same.
const CLASS_NAMES: [&str; 3] =
    ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"];

/// What `feature_extractor` may be called.
const FEATURE_EXTRACTORS: [&str; 4] =
    [CLIPImageProcessor::CLASS_NAME, "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];

/// What `from_pretrained` of the pipeline may be told; [`StableDiffusionLoader::load`] does it.
///
/// A component that is passed in ready-made is not read from the folder. `P` is the pipeline to put together; folders of
/// either kind serve all of them.
#[derive(Debug)]
#[must_use = "nothing is read before `load`"]
pub struct StableDiffusionLoader<P = StableDiffusionPipeline> {
    pipeline: PhantomData<fn() -> P>,
    folder: PathBuf,
    options: LoadOptions,
    offloading: Option<GroupOffloading>,
    progress_bar: ProgressBarConfig,
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

impl<P: From<StableDiffusionPipeline>> StableDiffusionLoader<P> {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            pipeline: PhantomData,
            folder: folder.to_path_buf(),
            options: LoadOptions::default(),
            offloading: None,
            progress_bar: ProgressBarConfig::default(),
            vae: None,
            text_encoder: None,
            tokenizer: None,
            unet: None,
            scheduler: None,
            safety_checker: None,
            feature_extractor: None,
            requires_safety_checker: None,
        }
    }

    /// The dtype that floating-point weights are cast to while loading; float32 by default.
    pub fn torch_dtype(mut self, kind: Kind) -> Self {
        self.options.torch_dtype = Some(kind);
        self
    }

    /// The spelling of the weights' files, such as `fp16`. A component without such files is read from its plain ones.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.options.variant = Some(variant.into());
        self
    }

    /// Where the weights go; the CPU by default.
    pub fn device(mut self, device: Device) -> Self {
        self.options.device = device;
        self
    }

    /// Switches group offloading on, for every model that is read from the folder, while loading. Weights that are left to
    /// their files in another dtype than the pipeline's are then cast for each forward, and never all at once.
    pub fn group_offload(mut self, options: GroupOffloading) -> Self {
        self.offloading = Some(options);
        self
    }

    /// The branch, tag or commit of a repository of the Hub; `main` by default.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.options.hub.revision = Some(revision.into());
        self
    }

    /// Reads what is in the cache of the Hub's files, and asks no server.
    pub fn local_files_only(mut self, local_files_only: bool) -> Self {
        self.options.hub.local_files_only = local_files_only;
        self
    }

    /// All options for the Hub at once: revision, token, cache, server.
    pub fn hub(mut self, hub: HubOptions) -> Self {
        self.options.hub = hub;
        self
    }

    /// How loading, and later each call, shows that it goes on.
    pub fn progress_bar(mut self, config: ProgressBarConfig) -> Self {
        self.progress_bar = config;
        self
    }

    /// Uses this VAE.
    pub fn vae(mut self, vae: AutoencoderKL) -> Self {
        self.vae = Some(vae);
        self
    }

    /// Uses this text encoder.
    pub fn text_encoder(mut self, text_encoder: CLIPTextModel) -> Self {
        self.text_encoder = Some(text_encoder);
        self
    }

    /// Uses this tokenizer.
    pub fn tokenizer(mut self, tokenizer: CLIPTokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Uses this UNet.
    pub fn unet(mut self, unet: impl UNet + 'static) -> Self {
        self.unet = Some(Box::new(unet));
        self
    }

    /// Uses this scheduler.
    pub fn scheduler(mut self, scheduler: Box<dyn Scheduler>) -> Self {
        self.scheduler = Some(scheduler);
        self
    }

    /// Uses this safety checker, or with `None` does without: then the folder's is not read.
    pub fn safety_checker(mut self, safety_checker: Option<StableDiffusionSafetyChecker>) -> Self {
        self.safety_checker = Some(safety_checker);
        self
    }

    /// Uses this feature extractor.
    pub fn feature_extractor(mut self, feature_extractor: CLIPImageProcessor) -> Self {
        self.feature_extractor = Some(feature_extractor);
        self
    }

    /// Whether the lack of a safety checker is worth a warning; by default what the folder says, and otherwise yes.
    pub fn requires_safety_checker(mut self, requires_safety_checker: bool) -> Self {
        self.requires_safety_checker = Some(requires_safety_checker);
        self
    }

    /// Reads what was not passed in, and puts the pipeline together.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Config`] naming the file, [`Error::MissingWeights`] or [`Error::WeightShape`] naming the
    /// keys, [`Error::Unsupported`] naming what the folder asks for and is not there; [`Error::Argument`] if no component
    /// has files of the variant; for a repository of the Hub also as [`HubOptions::pipeline_folder`].
    pub fn load(mut self) -> Result<P> {
        self.download()?;
        let index = ModelIndex::from_folder(&self.folder)?;
        self.check(&index)?;
        let (folder, progress_bar) = (self.folder.as_path(), self.progress_bar);
        let bar = progress_bar.start(6, "loading");
        let load = Load { folder, options: &self.options, offloading: self.offloading.as_ref() };
        let scheduler = match self.scheduler {
            Some(scheduler) => scheduler,
            None => {
                let path = folder.join("scheduler/scheduler_config.json");
                scheduler_from_config(&read_json::<ConfigMap>(&path)?).map_err(|error| error.in_file(&path))?
            }
        };
        bar.inc(1);
        let tokenizer = match self.tokenizer {
            Some(tokenizer) => tokenizer,
            None => CLIPTokenizer::from_pretrained(folder.join("tokenizer"))?,
        };
        bar.inc(1);
        let text_encoder = self.text_encoder.map_or_else(|| load.model("text_encoder"), Ok)?;
        bar.inc(1);
        let unet = match self.unet {
            Some(mut unet) => {
                let config = folder.join("unet/config.json");
                if config.is_file() {
                    unet.adopt(&from_map(&read_json::<ConfigMap>(&config)?)?);
                }
                unet
            }
            None => Box::new(load.model::<UNet2DConditionModel>("unet")?),
        };
        bar.inc(1);
        let vae = self.vae.map_or_else(|| load.model("vae"), Ok)?;
        bar.inc(1);
        let safety_checker = match self.safety_checker {
            Some(safety_checker) => safety_checker,
            None if index.component("safety_checker").is_some() => Some(load.safety_checker()?),
            None => None,
        };
        let feature_extractor = match self.feature_extractor {
            Some(feature_extractor) => Some(feature_extractor),
            None => load.feature_extractor(&index, safety_checker.is_some())?,
        };
        bar.finish_and_clear();
        let said = self.requires_safety_checker.or(index.flag("requires_safety_checker"));
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
        let mut pipeline = StableDiffusionPipeline::new(components)?;
        pipeline.progress_bar = progress_bar;
        Ok(pipeline.into())
    }

    /// Brings what a repository of the Hub has for the pipeline here, if it is one that was named.
    fn download(&mut self) -> Result<()> {
        // A UNet from elsewhere takes over the configuration of the folder's.
        let passed = [
            ("vae", self.vae.is_some()),
            ("text_encoder", self.text_encoder.is_some()),
            ("tokenizer", self.tokenizer.is_some()),
            ("scheduler", self.scheduler.is_some()),
            ("safety_checker", self.safety_checker.is_some()),
            ("feature_extractor", self.feature_extractor.is_some()),
        ];
        let passed: Vec<_> = passed.iter().filter(|(_, is_passed)| *is_passed).map(|(name, _)| *name).collect();
        let mut hub = self.options.hub.clone();
        hub.progress_bar.disable |= self.progress_bar.disable;
        self.folder = hub.pipeline_folder(&self.folder, self.options.variant.as_deref(), &passed)?;
        Ok(())
    }

    /// Holds the folder's index to what is supported, before any weights are read.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        if !CLASS_NAMES.contains(&index.class_name()) {
            return Err(Error::Unsupported(format!(
                "{}: the folder holds a {}, not a StableDiffusionPipeline",
                self.folder.display(),
                index.class_name()
            )));
        }
        if self.unet.is_none() {
            index.require("unet", &[UNet2DConditionModel::CLASS_NAME])?;
        }
        if self.vae.is_none() {
            index.require("vae", &[AutoencoderKL::CLASS_NAME])?;
        }
        if self.text_encoder.is_none() {
            index.require("text_encoder", &[CLIPTextModel::CLASS_NAME])?;
        }
        if self.tokenizer.is_none() {
            index.require("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        }
        if self.safety_checker.is_none() && index.component("safety_checker").is_some() {
            index.require("safety_checker", &[StableDiffusionSafetyChecker::CLASS_NAME])?;
        }
        self.check_variant()
    }

    /// Some component has to have files of the variant.
    fn check_variant(&self) -> Result<()> {
        let Some(variant) = &self.options.variant else { return Ok(()) };
        let found = [("text_encoder", CLIPTextModel::WEIGHTS_STEM), ("unet", UNet2DConditionModel::WEIGHTS_STEM)]
            .into_iter()
            .chain([("vae", AutoencoderKL::WEIGHTS_STEM)])
            .any(|(name, stem)| self.options.weight_files(&self.folder.join(name), stem).is_ok());
        if found {
            return Ok(());
        }
        Err(Error::Argument(format!("{}: no component has files of variant `{variant}`", self.folder.display())))
    }
}

/// The reading of one model of the pipeline.
struct Load<'a> {
    folder: &'a Path,
    options: &'a LoadOptions,
    offloading: Option<&'a GroupOffloading>,
}

impl Load<'_> {
    fn model<M: ModelMixin>(&self, name: &str) -> Result<M> {
        let folder = self.folder.join(name);
        let mut options = self.options.clone();
        if options.variant.is_some() && options.weight_files(&folder, M::WEIGHTS_STEM).is_err() {
            tracing::warn!("`{name}` has no files of the variant and is read from its plain ones");
            options.variant = None;
        }
        let loader: ModelLoader<M> = M::from_pretrained(folder);
        let loader = loader.options(options);
        match self.offloading {
            // How long the others are is not known yet.
            Some(offloading) => loader.group_offload(offloading.clone().with_share_of_limit(1, 3)).load(),
            None => loader.load(),
        }
    }

    fn safety_checker(&self) -> Result<StableDiffusionSafetyChecker> {
        self.model("safety_checker").map_err(|error| match error {
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
