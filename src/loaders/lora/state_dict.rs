//! A LoRA as it stands in its file.

use super::alphas::{Alphas, Config};
use super::keys::{Key, Part, Spelling, are_kohyas, has_component, read, read_of};
use super::kohya;
use crate::error::{Error, Result};
use crate::loaders::SafetensorsHeader;
use crate::loaders::checkpoint::{in_memory, mapped};
use crate::torch::{KindExt, MappedFile};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Where diffusers keeps the training's configuration, as JSON: among the metadata of the file.
pub(super) const METADATA_KEY: &str = "lora_adapter_metadata";

/// The endings of files that can run code.
const PICKLES: [&str; 4] = ["bin", "ckpt", "pt", "pth"];

/// The weights of a LoRA by component and layer, whichever layout its file has: PEFT's, diffusers' older ones, or kohya's.
///
/// # Examples
/// ```no_run
/// use tch_diffusers::loaders::LoraStateDict;
/// let lora = LoraStateDict::read("pixel-art.safetensors")?;
/// assert_eq!(lora.components(), ["text_encoder", "unet"]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct LoraStateDict {
    file: PathBuf,
    components: BTreeMap<String, Component>,
}

/// Tensors by their keys.
type Tensors = Vec<(String, Tensor)>;

/// What the keys of a LoRA say.
#[derive(Clone, Copy)]
enum Naming<'a> {
    /// Components and layers, in kohya's spelling.
    Kohya,
    /// Components and layers.
    Components,
    /// Layers of a UNet.
    Unet,
    /// Layers of one model, behind this name if there is one. Other keys are of other models.
    Model(Option<&'a str>),
}

impl Naming<'_> {
    fn of(tensors: &[(String, Tensor)]) -> Self {
        let mut keys = tensors.iter().map(|(key, _)| key.as_str());
        // Differs from diffusers: there, keys that name no component are read by `unet.load_attn_procs` alone.
        match !tensors.is_empty() && are_kohyas(keys.clone()) {
            true => Self::Kohya,
            false if keys.any(has_component) => Self::Components,
            false => Self::Unet,
        }
    }

    /// What `key` is; none for one of another model.
    fn read(self, key: &str) -> Option<Spelling> {
        match self {
            Self::Kohya => Some(kohya::read(key)),
            Self::Components => Some(read(key, "")),
            Self::Unet => Some(read(key, "unet")),
            Self::Model(None) => Some(read_of("", key)),
            Self::Model(Some(prefix)) => Some(read_of(prefix, key.strip_prefix(prefix)?.strip_prefix('.')?)),
        }
    }
}

/// The part of a LoRA that is of one model.
#[derive(Debug, Default)]
pub(super) struct Component {
    /// By the paths of layers.
    pub(super) layers: BTreeMap<String, Layer>,
    /// Their paths, in the order of the file.
    order: Vec<String>,
    /// The alphas under diffusers' names of them, in that order.
    given: Vec<(String, f64)>,
    config: Option<Config>,
}

/// The tensors of one layer.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) down: Option<Tensor>,
    pub(super) up: Option<Tensor>,
    pub(super) up_bias: Option<Tensor>,
    alpha: Option<f64>,
    pattern: String,
}

impl LoraStateDict {
    /// Reads the safetensors file at `path`. Its tensors are copied: the file may change afterwards.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pickle file, or an adapter of another method; [`Error::Config`] naming the key that is
    /// none of a LoRA's; and as [`SafetensorsHeader::read`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (tensors, metadata) = read_file(path)?;
        Self::from_tensors(path, &tensors, metadata.as_deref())
    }

    /// Reads a safetensors file with the LoRA of one model: keys name its layers, behind `prefix` and a point if that is
    /// given, and keys without the prefix are of other models. diffusers' `load_lora_adapter` of a model.
    ///
    /// # Errors
    /// As [`LoraStateDict::read`]. Kohya's layout is none of a single model's.
    pub fn read_of_model(path: impl AsRef<Path>, prefix: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let (tensors, metadata) = read_file(path)?;
        Self::from_tensors_of_model(path, &tensors, metadata.as_deref(), prefix)
    }

    /// Reads a safetensors file that is in memory; errors call it `name`.
    ///
    /// # Errors
    /// As [`LoraStateDict::read`].
    pub fn parse(name: &Path, bytes: &[u8]) -> Result<Self> {
        let header = SafetensorsHeader::parse(name, &mut &*bytes, bytes.len() as u64)?;
        let tensors = header.tensors.iter();
        let tensors = tensors.map(|entry| Ok((entry.name.clone(), in_memory(name, bytes, header.start, entry)?)));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        Self::from_tensors(name, &tensors, header.metadata.get(METADATA_KEY).map(String::as_str))
    }

    /// Takes the tensors of a LoRA that is in memory, in one of the layouts; errors call it `name`. `metadata` is the JSON
    /// that diffusers keeps as `lora_adapter_metadata`, if there is any.
    ///
    /// # Errors
    /// As [`LoraStateDict::read`].
    pub fn from_tensors(name: &Path, tensors: &[(String, Tensor)], metadata: Option<&str>) -> Result<Self> {
        Self::collect(name, tensors, metadata, Naming::of(tensors))
    }

    /// As [`LoraStateDict::read_of_model`], of tensors that are in memory.
    ///
    /// # Errors
    /// As there.
    pub fn from_tensors_of_model(
        name: &Path,
        tensors: &[(String, Tensor)],
        metadata: Option<&str>,
        prefix: Option<&str>,
    ) -> Result<Self> {
        Self::collect(name, tensors, metadata, Naming::Model(prefix))
    }

    fn collect(name: &Path, tensors: &[(String, Tensor)], metadata: Option<&str>, naming: Naming<'_>) -> Result<Self> {
        let mut lora = Self { file: name.to_path_buf(), components: BTreeMap::new() };
        let mut unexpected = vec![];
        for (key, tensor) in tensors {
            match naming.read(key) {
                Some(Spelling::Known(known)) => lora.insert(key, known, tensor)?,
                Some(Spelling::Skipped) => {
                    tracing::warn!("{}: `{key}` is of DoRA and is passed over", name.display());
                }
                Some(Spelling::Unexpected) => unexpected.push(key.as_str()),
                Some(Spelling::Method(method)) => {
                    let text = format!("{}: `{key}` is of {method}; supported are plain LoRAs", name.display());
                    return Err(Error::Unsupported(text));
                }
                Some(Spelling::Foreign) => return Err(lora.foreign(key)),
                None => {}
            }
        }
        if !unexpected.is_empty() {
            tracing::warn!("{}: keys that are passed over: {}", name.display(), unexpected.join(", "));
        }
        lora.configure(metadata)?;
        for component in lora.components.values_mut() {
            component.settle();
        }
        Ok(lora)
    }

    fn foreign(&self, key: &str) -> Error {
        Error::Config(format!(
            "{}: `{key}` is no weight of a LoRA: expected are `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, diffusers' \
             older `<layer>.lora.down.weight`, or kohya's `lora_unet_<layer>.lora_down.weight`",
            self.file.display()
        ))
    }

    fn insert(&mut self, spelled: &str, key: Key, tensor: &Tensor) -> Result<()> {
        let Key { component, module, part, pattern } = key;
        let refuse = |what: String| Err(Error::Config(format!("{}: `{spelled}` {what}", self.file.display())));
        if !tensor.f_kind()?.is_floating_point() {
            let found = tensor.f_kind()?.torch_name();
            return refuse(format!("should be of a floating-point dtype and is {found}"));
        }
        if part == Part::Alpha && tensor.numel() != 1 {
            return refuse(format!("should be one number and is {:?}", tensor.size()));
        }
        let component = self.components.entry(component).or_default();
        if part == Part::Down {
            component.order.push(module.clone());
        }
        let layer = component.layers.entry(module).or_default();
        layer.pattern = pattern;
        let twice = "is there twice, in two spellings";
        let place = match part {
            Part::Alpha => {
                let alpha = tensor.f_reshape([1])?.f_double_value(&[0])?;
                return match layer.alpha.replace(alpha) {
                    Some(_) => refuse(twice.into()),
                    None if !alpha.is_finite() => refuse(format!("should be a number and is {alpha}")),
                    None => Ok(()),
                };
            }
            Part::Down => &mut layer.down,
            Part::Up => &mut layer.up,
            Part::UpBias => &mut layer.up_bias,
        };
        if place.is_some() {
            return refuse(twice.into());
        }
        *place = Some(copied(tensor)?);
        Ok(())
    }

    /// Reads what diffusers keeps of the training's configuration.
    fn configure(&mut self, metadata: Option<&str>) -> Result<()> {
        let Some(text) = metadata else { return Ok(()) };
        let metadata: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| Error::Config(format!("{}: `lora_adapter_metadata`: {error}", self.file.display())))?;
        for (name, component) in &mut self.components {
            component.config = Config::read(&metadata, name).map_err(|error| error.in_file(&self.file))?;
            if component.config.is_some() && component.layers.values().any(|layer| layer.alpha.is_some()) {
                return Err(Error::Config(format!(
                    "{}: it has both alphas and a `lora_adapter_metadata` for `{name}`",
                    self.file.display()
                )));
            }
        }
        Ok(())
    }

    /// The file that it was read from, or what it was called.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The components that it has weights for, by name; `""` for the one of a LoRA whose keys name layers alone, by
    /// [`LoraStateDict::read_of_model`].
    #[must_use]
    pub fn components(&self) -> Vec<&str> {
        self.components.keys().map(String::as_str).collect()
    }

    /// The paths of the layers of a component, sorted, as the file has them.
    #[must_use]
    pub fn layers(&self, component: &str) -> Vec<&str> {
        let component = self.components.get(component);
        component.map_or_else(Vec::new, |component| component.layers.keys().map(String::as_str).collect())
    }

    pub(super) fn component(&self, name: &str) -> Option<&Component> {
        self.components.get(name)
    }

    /// A key as PEFT would spell it, for errors.
    pub(super) fn key(component: &str, module: &str, part: Part) -> String {
        let point = if component.is_empty() { "" } else { "." };
        format!("{component}{point}{module}.{}", part.ending())
    }
}

impl Component {
    /// Gathers the alphas of all layers.
    fn settle(&mut self) {
        let layers = self.order.iter().filter_map(|module| self.layers.get(module));
        self.given = layers.filter_map(|layer| Some((layer.pattern.clone(), layer.alpha?))).collect();
    }

    /// How much the adapter counts in each layer.
    pub(super) fn alphas(&self) -> Alphas {
        match &self.config {
            Some(config) => Alphas::Config(config.clone()),
            None => Alphas::given(&self.given),
        }
    }

    /// The alpha that the file has for the layer at `module`.
    pub(super) fn own_alpha(&self, module: &str) -> Option<f64> {
        self.layers.get(module)?.alpha
    }
}

/// The tensors of a safetensors file, which lie in it, and its [`METADATA_KEY`].
fn read_file(path: &Path) -> Result<(Tensors, Option<String>)> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if PICKLES.contains(&ending) {
        return Err(pickle(path));
    }
    let mut header = SafetensorsHeader::read(path)?;
    let map = MappedFile::open(path, header.size)?;
    let tensors = header.tensors.iter();
    let tensors = tensors.map(|entry| Ok((entry.name.clone(), mapped(&map, header.start, entry)?.view()?)));
    Ok((tensors.collect::<Result<Vec<_>>>()?, header.metadata.remove(METADATA_KEY)))
}

/// The refusal of a file that can run code.
pub(super) fn pickle(path: &Path) -> Error {
    Error::Unsupported(format!(
        "{}: pickle files can run code and are not read; convert it with \
         `safetensors.torch.save_file(torch.load(file, weights_only=True), ...)`",
        path.display()
    ))
}

/// The same numbers in memory of their own.
fn copied(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.f_kind()?, tensor.device()))?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}
