//! Loading, saving and moving, for every model.
//!
//! Mirrors `diffusers/models/modeling_utils.py` at 0.42.1.

use crate::configuration_utils::{ConfigMap, DIFFUSERS_VERSION, from_map, read_json, write_json};
use crate::error::{Error, Result};
use crate::hooks::{
    DEFAULT_SKIP_MODULES_PATTERN, GroupOffloading, SkipModules, apply_group_offloading, apply_layerwise_casting,
    disable_layerwise_casting, enable_weights_prepack, refuse_if_offloaded, remove_group_offloading, set_compute_dtype,
};
use crate::loaders::{Checkpoint, HubOptions, KeyMap, LoadOptions, SaveOptions, StateDict};
use crate::models::attention_dispatch::AttentionBackend;
use crate::models::attention_processor::{set_attention_backend, set_fused_projections};
use crate::models::compile::{CompileOptions, CompiledBlocks, compile_repeated_blocks, disable_compiled_blocks};
use crate::models::share;
use crate::nn::{Module, Node, Scope, Weights, set_use_winograd, set_weights_prepack};
use crate::torch::{KindExt, MappedTensor, MemoryFormat};
use serde::{Serialize, de::DeserializeOwned};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What every model offers beside its forward.
pub trait ModelMixin: Module + Sized {
    /// `config.json`, as a struct.
    type Config: Clone + DeserializeOwned + Serialize;

    /// diffusers' or transformers' name of the class.
    const CLASS_NAME: &'static str;

    /// What the weights' files are called: `diffusion_pytorch_model`, or `model` for what comes from transformers.
    const WEIGHTS_STEM: &'static str = "diffusion_pytorch_model";

    /// The children that block-level group offloading cuts into blocks of their own: `_group_offload_block_modules`.
    const GROUP_OFFLOAD_BLOCK_MODULES: &'static [&'static str] = &[];

    /// The classes of the blocks that [`ModelMixin::compile_repeated_blocks`] compiles: `_repeated_blocks`.
    const REPEATED_BLOCKS: &'static [&'static str] = &[];

    /// How a checkpoint's keys become the model's. As they are, unless the model says otherwise.
    const KEYS: KeyMap = |key| Some(key.to_string());

    /// What layerwise casting leaves as it is, beside [`DEFAULT_SKIP_MODULES_PATTERN`].
    const SKIP_LAYERWISE_CASTING_PATTERNS: &'static [&'static str] = &[];

    /// The modules, by a name in their path, that stay in float32 where a model is loaded in float16:
    /// `_keep_in_fp32_modules`. Casting a model that is loaded casts them as well, as there.
    const KEEP_IN_FP32_MODULES: &'static [&'static str] = &[];

    /// Builds the model, its weights coming from `scope`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what the configuration asks for and is not there; whatever the weights fail with.
    fn from_scope(config: Self::Config, scope: Scope<'_>) -> Result<Self>;

    /// The configuration the model was built from.
    fn config(&self) -> &Self::Config;

    /// Builds the model from a configuration and any source of weights.
    ///
    /// # Errors
    /// As [`ModelMixin::from_scope`].
    fn from_weights(config: Self::Config, weights: &dyn Weights) -> Result<Self> {
        Self::from_scope(config, Scope::root(weights))
    }

    /// Reads the model that diffusers wrote to `folder`: `from_pretrained(folder).torch_dtype(Kind::Half).load()?`. Where
    /// there is no such folder, `owner/name` is a repository of the Hub, and a folder of [`HubOptions`]' cache is read.
    fn from_pretrained(folder: impl AsRef<Path>) -> ModelLoader<Self> {
        ModelLoader::new(folder.as_ref())
    }

    /// A second model over the same weights, for another thread: nothing is copied, and techniques that are set on this one
    /// (attention slicing, backends, fused projections, slices and tiles of a VAE) are set on it as well. From then on each
    /// has its own. Weights packed by [`ModelMixin::enable_weights_prepack`] are packed once for each.
    ///
    /// # Errors
    /// [`Error::Argument`] while a hook is around a module, as with offloading and layerwise casting: a hook lends one model
    /// its weights.
    fn share(&self) -> Result<Self> {
        share(self)
    }

    /// Writes `config.json` and the weights to `folder`, so that diffusers reads them back.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(folder, &SaveOptions::default())
    }

    /// As [`ModelMixin::save_pretrained`], with a limit for each file's size, or a variant in the files' names.
    ///
    /// # Errors
    /// As [`StateDict::save`].
    fn save_pretrained_with(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let config = serde_json::to_value(self.config()).map_err(|error| Error::Config(error.to_string()))?;
        let mut map: ConfigMap = from_value(config)?;
        map.insert("_class_name".into(), Self::CLASS_NAME.into());
        map.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
        write_json(&folder.join("config.json"), &map)?;
        StateDict::new(self.node().state_dict()).save(folder, Self::WEIGHTS_STEM, options).map(drop)
    }

    /// Moves, casts or re-lays the weights, in place.
    ///
    /// ```no_run
    /// # use tch_diffusers::{MemoryFormat, models::{ModelMixin, unets::UNet2DConditionModel}};
    /// # fn main() -> tch_diffusers::Result<()> {
    /// let unet = UNet2DConditionModel::from_pretrained("stable-diffusion-v1-5/unet").load()?;
    /// unet.to(tch::Device::Cuda(0))?;
    /// unet.to(tch::Kind::Half)?;
    /// unet.to(MemoryFormat::ChannelsLast)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Argument`] for a device while offloading is on.
    // Differs from diffusers: there, moving an offloaded model is a warning, or undoes part of the offloading.
    fn to(&self, target: impl Into<To>) -> Result<()> {
        match target.into() {
            To::Device(device) => {
                refuse_if_offloaded(self.node(), "the model cannot be moved")?;
                self.node().to_device(device)
            }
            To::Kind(kind) => set_compute_dtype(self.node(), kind),
            To::MemoryFormat(format) => self.node().to_memory_format(format),
        }
    }

    /// Has the model's attention computed by `backend`: `unet.set_attention_backend("_native_flash".parse()?)`. A forward
    /// that the backend cannot do fails, and says what is missing.
    fn set_attention_backend(&self, backend: AttentionBackend) {
        set_attention_backend(self.node(), backend);
    }

    /// Computes queries, keys and values as one product, and those of the text as keys and values. The weights keep their
    /// names and take no more memory, but those mapped from a file are read.
    fn fuse_qkv_projections(&self) {
        set_fused_projections(self.node(), true);
    }

    /// Computes queries, keys and values one after the other again.
    fn unfuse_qkv_projections(&self) {
        set_fused_projections(self.node(), false);
    }

    /// Computes convolutions in float32 on the CPU with a quarter of the multiplications, where
    /// [`conv2d_winograd`](crate::torch::conv2d_winograd) suits them; the result is close, not equal. It is fastest after
    /// `to(MemoryFormat::ChannelsLast)`. No counterpart in diffusers.
    fn enable_winograd(&self) {
        set_use_winograd(self.node(), true);
    }

    /// Computes convolutions as libtorch does again.
    fn disable_winograd(&self) {
        set_use_winograd(self.node(), false);
    }

    /// Has convolutions on the CPU keep their weights in oneDNN's own layout, in which libtorch lays them out anew for each
    /// call otherwise: the same bits in less time, for a second copy of the weights, made by the next forward. The pages of
    /// weights that are mapped from a file are given back then. No counterpart in diffusers.
    ///
    /// # Errors
    /// [`Error::Argument`] while weights come and go: with offloading, or layerwise casting.
    fn enable_weights_prepack(&self) -> Result<()> {
        enable_weights_prepack(self.node())
    }

    /// Forgets the copies again.
    fn disable_weights_prepack(&self) {
        set_weights_prepack(self.node(), false);
    }

    /// Has the blocks that the model is made of again and again run compiled: each kind of block is compiled once for all its
    /// twins, which keep their own weights. Where those move, the code follows. By default blocks are recorded by their first
    /// forward; with `max-autotune` they run a package made with `--repeated-blocks`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without such blocks, or for `reduce-overhead`; [`Error::Argument`] for a package of
    /// another architecture, or none; as [`AotiPackage::load`](crate::torch::AotiPackage::load).
    fn compile_repeated_blocks(&self, options: &CompileOptions) -> Result<CompiledBlocks> {
        compile_repeated_blocks(self, options)
    }

    /// Has the blocks run as modules again; says whether any was compiled.
    fn disable_compiled_blocks(&self) -> bool {
        disable_compiled_blocks(self.node())
    }

    /// Has the weights wait on the CPU or in their file, and come to the onload device in groups:
    /// `unet.enable_group_offload(&GroupOffloading::leaf_level().offload_to_disk(true))?`.
    ///
    /// # Errors
    /// As [`apply_group_offloading`].
    fn enable_group_offload(&self, options: &GroupOffloading) -> Result<()> {
        let options = options.clone().or_block_modules(Self::GROUP_OFFLOAD_BLOCK_MODULES);
        apply_group_offloading(self.node(), &options)
    }

    /// Undoes [`ModelMixin::enable_group_offload`]; says whether there was anything to undo.
    ///
    /// # Errors
    /// As [`remove_group_offloading`].
    fn disable_group_offload(&self) -> Result<bool> {
        remove_group_offloading(self.node())
    }

    /// Stores the weights of convolutions, linear maps and embeddings in `storage_dtype`, `float8_e4m3fn` or
    /// `float8_e5m2` for half the memory of bfloat16, and casts each to `compute_dtype` while it is used.
    ///
    /// `compute_dtype` is the model's own unless given. Modules whose dotted names one of `skip_modules_pattern` finds keep
    /// their dtype, and so do those that the model names itself; the patterns are [`DEFAULT_SKIP_MODULES_PATTERN`] unless
    /// given. [`apply_layerwise_casting`] leaves the model no say.
    ///
    /// # Errors
    /// As [`apply_layerwise_casting`]; nothing is changed if a weight is beyond what `storage_dtype` holds.
    fn enable_layerwise_casting(
        &self,
        storage_dtype: Kind,
        compute_dtype: Option<Kind>,
        skip_modules_pattern: Option<&[&str]>,
    ) -> Result<()> {
        let patterns = skip_modules_pattern.unwrap_or(&DEFAULT_SKIP_MODULES_PATTERN);
        let patterns = [patterns, Self::SKIP_LAYERWISE_CASTING_PATTERNS].concat();
        let skip = SkipModules { pattern: Some(&patterns), classes: None };
        apply_layerwise_casting(self.node(), storage_dtype, compute_dtype.unwrap_or(self.node().dtype()), skip)
    }

    /// Stores all weights in the dtype they are computed in again. What was rounded stays rounded: load the model again for
    /// the numbers of its files.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room.
    fn disable_layerwise_casting(&self) -> Result<()> {
        disable_layerwise_casting(self.node())
    }
}

/// What [`ModelMixin::to`] takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum To {
    /// Where the weights go.
    Device(Device),
    /// What floating-point weights are cast to.
    Kind(Kind),
    /// How weights of four dimensions are laid out.
    MemoryFormat(MemoryFormat),
}

impl From<Device> for To {
    fn from(device: Device) -> Self {
        Self::Device(device)
    }
}

impl From<Kind> for To {
    fn from(kind: Kind) -> Self {
        Self::Kind(kind)
    }
}

impl From<MemoryFormat> for To {
    fn from(format: MemoryFormat) -> Self {
        Self::MemoryFormat(format)
    }
}

/// What `from_pretrained` of a model may be told; [`ModelLoader::load`] does it.
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `load`"]
pub struct ModelLoader<M> {
    pub(super) folder: PathBuf,
    pub(super) options: LoadOptions,
    pub(super) offloading: Option<GroupOffloading>,
    model: PhantomData<fn() -> M>,
}

impl<M> ModelLoader<M> {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), options: LoadOptions::default(), offloading: None, model: PhantomData }
    }

    /// The dtype that floating-point weights are cast to while loading; float32 by default.
    pub fn torch_dtype(mut self, kind: Kind) -> Self {
        self.options.torch_dtype = Some(kind);
        self
    }

    /// The spelling of the files, such as `fp16`.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.options.variant = Some(variant.into());
        self
    }

    /// The folder inside the given one, such as `unet`.
    pub fn subfolder(mut self, subfolder: impl Into<String>) -> Self {
        self.options.subfolder = Some(subfolder.into());
        self
    }

    /// Where the weights go; the CPU by default.
    pub fn device(mut self, device: Device) -> Self {
        self.options.device = device;
        self
    }

    /// Switches group offloading on while loading. Weights that are left to their file in another dtype than the model's
    /// are then cast for each forward, and never all at once.
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

    /// All options but offloading at once.
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// The same options for a model of another class.
    pub(super) fn of_class<N>(self) -> ModelLoader<N> {
        let Self { folder, options, offloading, .. } = self;
        ModelLoader { folder, options, offloading, model: PhantomData }
    }
}

impl<M: ModelMixin> ModelLoader<M> {
    /// Reads `config.json` and the weights, and builds the model.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Config`] naming the file, [`Error::MissingWeights`] or [`Error::WeightShape`] naming the
    /// keys, [`Error::Unsupported`] naming what the configuration asks for and is not there; for a repository of the Hub as
    /// [`HubOptions::model_folder`], with group offloading as [`apply_group_offloading`].
    pub fn load(self) -> Result<M> {
        self.offloading.as_ref().map_or(Ok(()), GroupOffloading::check)?;
        let (subfolder, variant) = (self.options.subfolder.as_deref(), self.options.variant.as_deref());
        let folder = self.options.hub.model_folder(&self.folder, subfolder, M::WEIGHTS_STEM, variant)?;
        let folder = self.options.folder(&folder);
        let path = folder.join("config.json");
        let map: ConfigMap = read_json(&path)?;
        let in_file = |error: Error| error.in_file(&path);
        let config = from_map(&map).map_err(in_file)?;
        let files = self.options.weight_files(&folder, M::WEIGHTS_STEM)?;
        // Differs from diffusers: without a dtype every model is float32. There, models of transformers keep the file's
        // dtype and those of diffusers do not, so that a pipeline saved in float16 fails at its first step.
        let kind = self.options.torch_dtype.unwrap_or(Kind::Float);
        let kept = if kind == Kind::Half { M::KEEP_IN_FP32_MODULES } else { &[] };
        let offloading = self.offloading.map(|offloading| offloading.compute_dtype(kind).keep_in_fp32(kept));
        let cast = Some(kind).filter(|_| !offloading.as_ref().is_some_and(GroupOffloading::is_to_disk));
        let checkpoint = Checkpoint::open(&files, M::KEYS, cast, self.options.device)?.keep_in_fp32(kept);
        let model = M::from_weights(config, &checkpoint).map_err(in_file)?;
        checkpoint.finish()?;
        check_dtypes(model.node(), &files)?;
        offloading.map_or(Ok(()), |options| model.enable_group_offload(&options))?;
        Ok(model)
    }
}

/// Models compute with floating-point weights, and with no others.
fn check_dtypes(node: &Node, files: &[PathBuf]) -> Result<()> {
    for (key, param) in node.params() {
        let kind = param.get().f_kind()?;
        if !kind.is_floating_point() {
            let origin = param.origin().map(MappedTensor::path).or(files.first().map(PathBuf::as_path));
            let file = origin.unwrap_or(Path::new("")).display();
            let found = kind.torch_name();
            return Err(Error::Config(format!("{file}: `{key}` should be of a floating-point dtype and is {found}")));
        }
    }
    Ok(())
}

fn from_value(value: serde_json::Value) -> Result<ConfigMap> {
    serde_json::from_value(value).map_err(|error| Error::Config(error.to_string()))
}
