//! `StableDiffusionPipeline::from_single_file`.
//!
//! Mirrors `FromSingleFileMixin` of `diffusers/loaders/single_file.py` at 0.42.1.

use super::{Components, StableDiffusionLoader, StableDiffusionPipeline, StableDiffusionSafetyChecker};
use crate::configuration_utils::{ConfigMap, from_map, read_json};
use crate::error::{Error, Result};
use crate::image_processor::CLIPImageProcessor;
use crate::loaders::HubOptions;
use crate::loaders::single_file::{SingleFile, SingleFileModel, check_single_file};
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer};
use crate::models::unets::UNet2DConditionModel;
use crate::schedulers::scheduler_from_config;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What `from_single_file` may be told; [`SingleFileLoader::load`] does it.
#[derive(Debug)]
#[must_use = "nothing is read before `load`"]
pub struct SingleFileLoader {
    file: PathBuf,
    config: Option<PathBuf>,
    tokenizer: Option<CLIPTokenizer>,
    safety_checker: Option<StableDiffusionSafetyChecker>,
    feature_extractor: Option<CLIPImageProcessor>,
    prediction_type: Option<String>,
    image_size: Option<i64>,
    torch_dtype: Kind,
    device: Device,
    hub: HubOptions,
}

impl StableDiffusionPipeline {
    /// Reads a checkpoint of Stable Diffusion 1.x or 2.x in one safetensors file, such as
    /// `v1-5-pruned-emaonly.safetensors`.
    ///
    /// The file has the weights alone. The library knows the configurations: see [`SingleFileModel`]. Only the tokenizer is
    /// read from elsewhere: the model's repository on the Hub, unless there is a [`SingleFileLoader::tokenizer`], or a
    /// [`SingleFileLoader::config`] for everything. As in diffusers, there is no safety checker unless one is passed.
    pub fn from_single_file(file: impl AsRef<Path>) -> SingleFileLoader {
        SingleFileLoader {
            file: file.as_ref().to_path_buf(),
            config: None,
            tokenizer: None,
            safety_checker: None,
            feature_extractor: None,
            prediction_type: None,
            image_size: None,
            torch_dtype: Kind::Float,
            device: Device::Cpu,
            hub: HubOptions::default(),
        }
    }
}

/// Where configurations come from.
enum Source {
    Folder(PathBuf),
    Known(SingleFileModel),
}

impl Source {
    fn model(&self, name: &str) -> Result<ConfigMap> {
        match (self, name) {
            (Self::Folder(folder), _) => read_json(&folder.join(name).join("config.json")),
            (Self::Known(model), "unet") => Ok(model.unet_config()),
            (Self::Known(model), "vae") => Ok(model.vae_config()),
            (Self::Known(model), _) => Ok(model.text_encoder_config()),
        }
    }

    fn scheduler(&self) -> Result<ConfigMap> {
        match self {
            Self::Folder(folder) => read_json(&folder.join("scheduler/scheduler_config.json")),
            Self::Known(model) => Ok(model.scheduler_config()),
        }
    }

    /// The error with the configuration's file, if there is one.
    fn blame(&self, error: Error, file: &str) -> Error {
        match self {
            Self::Folder(folder) => error.in_file(&folder.join(file)),
            Self::Known(_) => error,
        }
    }
}

impl SingleFileLoader {
    /// The folder or repository in diffusers' format that configurations and the tokenizer are read from.
    pub fn config(mut self, config: impl AsRef<Path>) -> Self {
        self.config = Some(config.as_ref().to_path_buf());
        self
    }

    /// Uses this tokenizer.
    pub fn tokenizer(mut self, tokenizer: CLIPTokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Uses this safety checker; `None`, the default, does without.
    pub fn safety_checker(mut self, safety_checker: Option<StableDiffusionSafetyChecker>) -> Self {
        self.safety_checker = safety_checker;
        self
    }

    /// Uses this feature extractor.
    pub fn feature_extractor(mut self, feature_extractor: CLIPImageProcessor) -> Self {
        self.feature_extractor = Some(feature_extractor);
        self
    }

    /// What the UNet predicts: `epsilon`, `v_prediction` or `sample`. A file of Stable Diffusion 2.x for 512 pixels needs
    /// `epsilon`, for it looks like one for 768.
    pub fn prediction_type(mut self, prediction_type: impl Into<String>) -> Self {
        self.prediction_type = Some(prediction_type.into());
        self
    }

    /// The height and width of pictures where a call does not say, in pixels.
    pub fn image_size(mut self, pixels: i64) -> Self {
        self.image_size = Some(pixels);
        self
    }

    /// The dtype that weights are cast to while loading; float32 by default.
    pub fn torch_dtype(mut self, kind: Kind) -> Self {
        self.torch_dtype = kind;
        self
    }

    /// Where the weights go; the CPU by default.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// How the repository is had from the Hub.
    pub fn hub(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// Reads the file, and puts the pipeline together.
    ///
    /// # Errors
    /// As [`check_single_file`] and, without a folder of configurations,
    /// [`SingleFile::model_type`](crate::loaders::single_file::SingleFile::model_type); [`Error::MissingWeights`] or
    /// [`Error::WeightShape`], naming the keys as diffusers has them, where the file and the configurations do not fit; as
    /// [`HubOptions::configuration_folder`].
    pub fn load(self) -> Result<StableDiffusionPipeline> {
        let file = check_single_file(&self.file)?;
        let source = match &self.config {
            Some(config) => Source::Folder(self.hub.configuration_folder(config)?),
            None => Source::Known(file.model_type()?),
        };
        let text_encoder = self.model::<CLIPTextModel>(&file, &source, "text_encoder")?;
        let unet = self.model::<UNet2DConditionModel>(&file, &source, "unet")?;
        let vae = self.model::<AutoencoderKL>(&file, &source, "vae")?;
        let mut config = source.scheduler()?;
        if let Some(prediction_type) = &self.prediction_type {
            config.insert("prediction_type".into(), prediction_type.as_str().into());
        }
        let scheduler =
            scheduler_from_config(&config).map_err(|error| source.blame(error, "scheduler/scheduler_config.json"))?;
        let Self { tokenizer, safety_checker, feature_extractor, hub, .. } = self;
        match source {
            Source::Folder(folder) => {
                let loader = StableDiffusionLoader::new(&folder).text_encoder(text_encoder).unet(unet).vae(vae);
                let mut loader = loader.scheduler(scheduler).safety_checker(safety_checker);
                if let Some(tokenizer) = tokenizer {
                    loader = loader.tokenizer(tokenizer);
                }
                if let Some(feature_extractor) = feature_extractor {
                    loader = loader.feature_extractor(feature_extractor);
                }
                loader.load()
            }
            Source::Known(model) => StableDiffusionPipeline::new(Components {
                vae,
                text_encoder,
                tokenizer: tokenizer.map_or_else(|| repositorys_tokenizer(model, &hub), Ok)?,
                unet: Box::new(unet),
                scheduler,
                safety_checker,
                feature_extractor: Some(feature_extractor.unwrap_or_default()),
                requires_safety_checker: model.requires_safety_checker(),
            }),
        }
    }

    fn model<M: ModelMixin>(&self, file: &SingleFile, source: &Source, name: &str) -> Result<M> {
        let blame = |error: Error| source.blame(error, &format!("{name}/config.json"));
        let mut map = source.model(name)?;
        if let Some(pixels) = self.image_size.filter(|_| name == "unet") {
            map.insert("sample_size".into(), (pixels / PIXELS_TO_A_LATENT).into());
        }
        let config = from_map(&map).map_err(blame)?;
        let checkpoint = file.checkpoint(name, Some(self.torch_dtype), self.device)?;
        let model = M::from_weights(config, &checkpoint).map_err(blame)?;
        checkpoint.finish()?;
        Ok(model)
    }
}

/// Of all that such files hold.
const PIXELS_TO_A_LATENT: i64 = 8;

fn repositorys_tokenizer(model: SingleFileModel, hub: &HubOptions) -> Result<CLIPTokenizer> {
    let folder = hub.configuration_folder(Path::new(model.repository())).map_err(|error| match error {
        Error::Hub(text) => {
            Error::Hub(format!("{text} (a single file has no tokenizer: pass one, or a folder that has it)"))
        }
        other => other,
    })?;
    CLIPTokenizer::from_pretrained(folder.join("tokenizer"))
}
