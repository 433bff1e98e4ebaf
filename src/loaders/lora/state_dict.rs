//! A LoRA as it stands in its file.

use super::alphas::{Alphas, Config};
use super::keys::{Key, Part, Spelling, are_kohyas, has_component, read};
use super::kohya;
use crate::error::{Error, Result};
use crate::loaders::SafetensorsHeader;
use crate::loaders::checkpoint::mapped;
use crate::torch::{KindExt, MappedFile};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

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
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if PICKLES.contains(&ending) {
            return Err(pickle(path));
        }
        let header = SafetensorsHeader::read(path)?;
        let map = MappedFile::open(path, header.size)?;
        let tensors = header.tensors.iter();
        let tensors = tensors.map(|entry| Ok((entry.name.clone(), mapped(&map, header.start, entry)?.view()?)));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        Self::from_tensors(path, &tensors, header.metadata.get("lora_adapter_metadata").map(String::as_str))
    }

    /// Takes the tensors of a LoRA that is in memory, in one of the layouts; errors call it `name`. `metadata` is the JSON
    /// that diffusers keeps as `lora_adapter_metadata`, if there is any.
    ///
    /// # Errors
    /// As [`LoraStateDict::read`].
    pub fn from_tensors(name: &Path, tensors: &[(String, Tensor)], metadata: Option<&str>) -> Result<Self> {
        let mut lora = Self { file: name.to_path_buf(), components: BTreeMap::new() };
        let is_kohyas = !tensors.is_empty() && are_kohyas(tensors.iter().map(|(key, _)| key.as_str()));
        // Differs from diffusers: there, keys that name no component are read by `unet.load_attn_procs` alone.
        let names_components = tensors.iter().any(|(key, _)| has_component(key));
        let mut unexpected = vec![];
        for (key, tensor) in tensors {
            let spelling = match (is_kohyas, names_components) {
                (true, _) => kohya::read(key),
                (false, true) => read(key, ""),
                (false, false) => read(key, "unet"),
            };
            match spelling {
                Spelling::Known(known) => lora.insert(key, known, tensor)?,
                Spelling::Skipped => tracing::warn!("{}: `{key}` is of DoRA and is passed over", name.display()),
                Spelling::Unexpected => unexpected.push(key.as_str()),
                Spelling::Method(method) => {
                    let text = format!("{}: `{key}` is of {method}; supported are plain LoRAs", name.display());
                    return Err(Error::Unsupported(text));
                }
                Spelling::Foreign => return Err(lora.foreign(key)),
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
        let place = match part {
            Part::Alpha => {
                layer.alpha = Some(tensor.f_reshape([1])?.f_double_value(&[0])?);
                return Ok(());
            }
            Part::Down => &mut layer.down,
            Part::Up => &mut layer.up,
            Part::UpBias => &mut layer.up_bias,
        };
        if place.is_some() {
            return refuse("is there twice, in two spellings".into());
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

    /// The components that it has weights for, by name.
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
        format!("{component}.{module}.{}", part.ending())
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
