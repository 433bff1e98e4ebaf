//! `from_pretrained`, as far as it is the same for all pipelines.
//!
//! Mirrors `DiffusionPipeline.from_pretrained` of `diffusers/pipelines/pipeline_utils.py` at 0.42.1.

use super::ModelIndex;
use crate::configuration_utils::{ConfigMap, from_map, read_json};
use crate::error::{Error, Result};
use crate::hooks::GroupOffloading;
use crate::loaders::{HubOptions, LoadOptions};
use crate::models::unets::UNet;
use crate::models::{ModelLoader, ModelMixin};
use crate::schedulers::{SCHEDULER_CONFIG_NAME, Scheduler, scheduler_from_config};
use crate::utils::progress::ProgressBarConfig;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What `from_pretrained` of a pipeline may be told; `load` does it.
///
/// `P` is the pipeline to put together. A component that is passed in ready-made, `C` being those that can be, is not read
/// from the folder.
#[derive(Debug)]
#[must_use = "nothing is read before `load`"]
pub struct PipelineLoader<P, C> {
    pipeline: PhantomData<fn() -> P>,
    pub(super) source: Source,
    pub(super) passed: C,
}

/// What is read from where, and how.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) folder: PathBuf,
    pub(super) options: LoadOptions,
    pub(super) offloading: Option<GroupOffloading>,
    pub(super) progress_bar: ProgressBarConfig,
}

impl<P, C: Default> PipelineLoader<P, C> {
    pub(super) fn new(folder: &Path) -> Self {
        Self::of(Source {
            folder: folder.to_path_buf(),
            options: LoadOptions::default(),
            offloading: None,
            progress_bar: ProgressBarConfig::default(),
        })
    }

    pub(super) fn of(source: Source) -> Self {
        Self { pipeline: PhantomData, source, passed: C::default() }
    }
}

impl<P, C> PipelineLoader<P, C> {
    /// The dtype that floating-point weights are cast to while loading; float32 by default.
    pub fn torch_dtype(mut self, kind: Kind) -> Self {
        self.source.options.torch_dtype = Some(kind);
        self
    }

    /// The spelling of the weights' files, such as `fp16`. A component without such files is read from its plain ones.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.source.options.variant = Some(variant.into());
        self
    }

    /// Where the weights go; the CPU by default.
    pub fn device(mut self, device: Device) -> Self {
        self.source.options.device = device;
        self
    }

    /// Switches group offloading on, for every model that is read from the folder, while loading. Weights that are left to
    /// their files in another dtype than the pipeline's are then cast for each forward, and never all at once.
    pub fn group_offload(mut self, options: GroupOffloading) -> Self {
        self.source.offloading = Some(options);
        self
    }

    /// The branch, tag or commit of a repository of the Hub; `main` by default.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.source.options.hub.revision = Some(revision.into());
        self
    }

    /// Reads what is in the cache of the Hub's files, and asks no server.
    pub fn local_files_only(mut self, local_files_only: bool) -> Self {
        self.source.options.hub.local_files_only = local_files_only;
        self
    }

    /// All options for the Hub at once: revision, token, cache, server.
    pub fn hub(mut self, hub: HubOptions) -> Self {
        self.source.options.hub = hub;
        self
    }

    /// How loading, and later each call, shows that it goes on.
    pub fn progress_bar(mut self, config: ProgressBarConfig) -> Self {
        self.source.progress_bar = config;
        self
    }
}

/// A component that a pipeline can be without: `passed`, if it was passed in or left out, or else what `read` reads where the
/// folder has it.
pub(super) fn optional<T>(
    index: &ModelIndex,
    name: &str,
    passed: Option<Option<T>>,
    read: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    match passed {
        None if index.component(name).is_some() => read().map(Some),
        passed => Ok(passed.flatten()),
    }
}

impl Source {
    /// Brings what a repository of the Hub has for the pipeline here, if it is one that was named. Components of `passed`
    /// that are there, as the flag says, are left out.
    pub(super) fn download(&mut self, passed: &[(&str, bool)]) -> Result<()> {
        let passed: Vec<_> = passed.iter().filter(|(_, is_passed)| *is_passed).map(|(name, _)| *name).collect();
        let mut hub = self.options.hub.clone();
        hub.progress_bar.disable |= self.progress_bar.disable;
        self.folder = hub.pipeline_folder(&self.folder, self.options.variant.as_deref(), &passed)?;
        Ok(())
    }

    /// The folder's index, if the folder holds a pipeline of one of these classes.
    pub(super) fn index(&self, class_names: &[&str]) -> Result<ModelIndex> {
        let index = ModelIndex::from_folder(&self.folder)?;
        if class_names.contains(&index.class_name()) {
            return Ok(index);
        }
        Err(Error::Unsupported(format!(
            "{}: the folder holds a {}, not a {}",
            self.folder.display(),
            index.class_name(),
            class_names.first().unwrap_or(&"pipeline")
        )))
    }

    /// Some component, of these names and names of files, has to have files of the variant.
    pub(super) fn check_variant(&self, components: &[(&str, &str)]) -> Result<()> {
        let Some(variant) = &self.options.variant else { return Ok(()) };
        let mut files = components.iter().map(|(name, stem)| self.options.weight_files(&self.folder.join(name), stem));
        if files.any(|files| files.is_ok()) {
            return Ok(());
        }
        Err(Error::Argument(format!("{}: no component has files of variant `{variant}`", self.folder.display())))
    }

    /// Reads the scheduler.
    pub(super) fn scheduler(&self) -> Result<Box<dyn Scheduler>> {
        let path = self.folder.join("scheduler").join(SCHEDULER_CONFIG_NAME);
        scheduler_from_config(&read_json::<ConfigMap>(&path)?).map_err(|error| error.in_file(&path))
    }

    /// A UNet that was passed in, with the folder's configuration where it has none of its own.
    pub(super) fn adopted(&self, mut unet: Box<dyn UNet>) -> Result<Box<dyn UNet>> {
        let config = self.folder.join("unet/config.json");
        if config.is_file() {
            unet.adopt(&from_map(&read_json::<ConfigMap>(&config)?)?);
        }
        Ok(unet)
    }

    /// Reads the model `name`, one of `models` that share what offloading may pin.
    pub(super) fn model<M: ModelMixin>(&self, name: &str, models: usize) -> Result<M> {
        let folder = self.folder.join(name);
        let mut options = self.options.clone();
        if options.variant.is_some() && options.weight_files(&folder, M::WEIGHTS_STEM).is_err() {
            tracing::warn!("`{name}` has no files of the variant and is read from its plain ones");
            options.variant = None;
        }
        let loader: ModelLoader<M> = M::from_pretrained(folder);
        let loader = loader.options(options);
        match &self.offloading {
            // How long the others are is not known yet.
            Some(offloading) => loader.group_offload(offloading.clone().with_share_of_limit(1, models)).load(),
            None => loader.load(),
        }
    }
}
