//! `StableDiffusionPipeline::from_single_file`.
//!
//! Mirrors `FromSingleFileMixin` of `diffusers/loaders/single_file.py` at 0.42.1.

use super::{StableDiffusionLoader, StableDiffusionPipeline};
use crate::configuration_utils::{ConfigMap, from_map, read_json};
use crate::error::{Error, Result};
use crate::loaders::single_file::{STABLE_DIFFUSION_V1, check_single_file, ldm_clip_key, ldm_unet_key, ldm_vae_key};
use crate::loaders::{Checkpoint, HubOptions, KeyMap};
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::CLIPTextModel;
use crate::models::unets::UNet2DConditionModel;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What `from_single_file` may be told; [`SingleFileLoader::load`] does it.
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `load`"]
pub struct SingleFileLoader {
    file: PathBuf,
    config: PathBuf,
    torch_dtype: Kind,
    device: Device,
    hub: HubOptions,
}

impl StableDiffusionPipeline {
    /// Reads a checkpoint of Stable Diffusion 1.x in one safetensors file, such as `v1-5-pruned-emaonly.safetensors`.
    ///
    /// The file has the weights alone. Configurations and the tokenizer come from a folder or repository in diffusers'
    /// format, [`STABLE_DIFFUSION_V1`] on the Hub unless [`SingleFileLoader::config`] names another.
    pub fn from_single_file(file: impl AsRef<Path>) -> SingleFileLoader {
        SingleFileLoader {
            file: file.as_ref().to_path_buf(),
            config: STABLE_DIFFUSION_V1.into(),
            torch_dtype: Kind::Float,
            device: Device::Cpu,
            hub: HubOptions::default(),
        }
    }
}

impl SingleFileLoader {
    /// The folder or repository that configurations and the tokenizer are read from.
    pub fn config(mut self, config: impl AsRef<Path>) -> Self {
        self.config = config.as_ref().to_path_buf();
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
    /// As [`check_single_file`]; [`Error::MissingWeights`] or [`Error::WeightShape`], naming the keys as diffusers has
    /// them, where the file and the configurations do not fit; as [`HubOptions::configuration_folder`].
    pub fn load(self) -> Result<StableDiffusionPipeline> {
        check_single_file(&self.file)?;
        let folder = self.hub.configuration_folder(&self.config)?;
        StableDiffusionLoader::new(&folder)
            .text_encoder(self.model::<CLIPTextModel>(&folder.join("text_encoder"), ldm_clip_key)?)
            .unet(self.model::<UNet2DConditionModel>(&folder.join("unet"), ldm_unet_key)?)
            .vae(self.model::<AutoencoderKL>(&folder.join("vae"), ldm_vae_key)?)
            .load()
    }

    fn model<M: ModelMixin>(&self, folder: &Path, keys: KeyMap) -> Result<M> {
        let path = folder.join("config.json");
        let in_file = |error: Error| error.in_file(&path);
        let config = from_map(&read_json::<ConfigMap>(&path)?).map_err(in_file)?;
        let checkpoint = Checkpoint::open(std::slice::from_ref(&self.file), keys, Some(self.torch_dtype), self.device)?;
        let model = M::from_weights(config, &checkpoint).map_err(in_file)?;
        checkpoint.finish()?;
        Ok(model)
    }
}
