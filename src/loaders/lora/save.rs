//! LoRAs on their way to files that diffusers reads.
//!
//! Mirrors `_save_lora_weights` and `write_lora_layers` of `diffusers/loaders/lora_base.py` at 0.42.1, and
//! `get_peft_model_state_dict` of `peft/utils/save_and_load.py` at 0.21.2.

use super::alphas::most_common;
use super::keys::Part;
use super::options::LORA_WEIGHT_NAME_SAFE;
use super::state_dict::{LoraStateDict, METADATA_KEY};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use crate::loaders::StateDict;
use crate::nn::{LoraLayer, LoraWeights, Node};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// An adapter of one model, as it is saved.
#[derive(Debug, Default)]
pub struct LoraLayers {
    /// Its factors, as `<layer>.lora_A.weight` and `<layer>.lora_B.weight`: PEFT's `get_peft_model_state_dict`.
    pub state_dict: Vec<(String, Tensor)>,
    /// What of PEFT's `LoraConfig` counts: ranks and alphas. Without it every alpha is its layer's rank once it is read
    /// again.
    pub metadata: Option<ConfigMap>,
}

impl LoraLayers {
    /// Those of the adapter `name` of `model`. Nothing is copied.
    ///
    /// # Errors
    /// [`Error::Argument`] if the model has no such adapter.
    pub fn of(model: &Node, name: &str) -> Result<Self> {
        let weights = |node: Node| Some((node.path().to_string(), LoraLayer::of(&node)?.weights_of(name)?));
        let layers: Vec<_> = model.walk().into_iter().filter_map(weights).collect();
        if layers.is_empty() {
            return Err(Error::Argument(format!("the {} has no adapter `{name}`", model.class())));
        }
        let metadata = Some(config(&layers));
        let parts = |(path, LoraWeights { down, up, up_bias, .. }): (String, LoraWeights)| {
            let tensors = [(Part::Down, Some(down)), (Part::Up, Some(up)), (Part::UpBias, up_bias)];
            tensors.into_iter().filter_map(move |(part, tensor)| Some((LoraStateDict::key("", &path, part), tensor?)))
        };
        Ok(Self { state_dict: layers.into_iter().flat_map(parts).collect(), metadata })
    }
}

/// What PEFT has to know of these layers.
fn config(layers: &[(String, LoraWeights)]) -> ConfigMap {
    let rank = |weights: &LoraWeights| weights.down.size().first().copied().unwrap_or(1) as f64;
    let ranks: Vec<_> = layers.iter().map(|(path, weights)| (path.as_str(), rank(weights))).collect();
    let alphas: Vec<_> = layers.iter().map(|(path, weights)| (path.as_str(), weights.alpha)).collect();
    let ((r, rank_pattern), (lora_alpha, alpha_pattern)) = (patterns(&ranks), patterns(&alphas));
    let config = json!({
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": rank_pattern,
        "lora_alpha": lora_alpha,
        "alpha_pattern": alpha_pattern,
        "target_modules": layers.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        "use_rslora": layers.iter().any(|(_, weights)| weights.use_rslora),
        "lora_bias": layers.iter().any(|(_, weights)| weights.up_bias.is_some()),
    });
    if let Value::Object(config) = config { config } else { ConfigMap::new() }
}

/// The most common number, and by their layers those that are others.
fn patterns(numbers: &[(&str, f64)]) -> (Value, ConfigMap) {
    let common = most_common(numbers.iter().map(|(_, number)| *number)).unwrap_or(1.0);
    let others = numbers.iter().filter(|(_, number)| *number != common);
    // PEFT takes a name for the end of a path as well, unless it says where the path begins.
    (plain(common), others.map(|(path, number)| (format!("^{path}"), plain(*number))).collect())
}

/// A number as PEFT writes it: without a point if it is a whole one.
fn plain(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// What `save_lora_weights` may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveLora {
    /// The file's name; `pytorch_lora_weights.safetensors` by default.
    pub weight_name: Option<String>,
    /// Casts the factors to this dtype; they keep theirs by default.
    pub dtype: Option<Kind>,
}

/// Writes adapters of one or several models to a file in `folder`, which is made if there is none, and gives the file. Each
/// comes with the name of its component, or with `""` where it is the only one and shall be read by the model alone.
///
/// # Errors
/// [`Error::Argument`] if there is nothing to write, or some have metadata and others none; [`Error::Io`] if the file cannot be written: one that was there before
/// is as it was then.
pub fn save_lora_weights(
    folder: impl AsRef<Path>,
    parts: &[(&str, &LoraLayers)],
    options: &SaveLora,
) -> Result<PathBuf> {
    let folder = folder.as_ref();
    let packed = |prefix: &str, key: &str| if prefix.is_empty() { key.into() } else { format!("{prefix}.{key}") };
    let (mut tensors, mut metadata) = (vec![], BTreeMap::new());
    for (prefix, layers) in parts {
        let weights = layers.state_dict.iter();
        tensors.extend(weights.map(|(key, tensor)| (packed(prefix, key), tensor.shallow_clone())));
        let config = layers.metadata.iter().flatten();
        metadata.extend(config.map(|(key, value)| (packed(prefix, key), value)));
    }
    let lacks = |(_, layers): &&(&str, &LoraLayers)| layers.metadata.is_none() && !layers.state_dict.is_empty();
    if let (false, Some((prefix, _))) = (metadata.is_empty(), parts.iter().find(lacks)) {
        let text = format!("`{prefix}` has no metadata, and another component has: diffusers reads no such file");
        return Err(Error::Argument(text));
    }
    if tensors.is_empty() {
        return Err(Error::Argument("there are no layers of a LoRA to save".into()));
    }
    let mut weights = StateDict::new(tensors).cast(options.dtype);
    if !metadata.is_empty() {
        let text = serde_json::to_string_pretty(&metadata).map_err(|error| Error::Config(error.to_string()))?;
        weights = weights.metadata(METADATA_KEY, &text);
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let file = folder.join(options.weight_name.as_deref().unwrap_or(LORA_WEIGHT_NAME_SAFE));
    weights.save_file(&file)?;
    Ok(file)
}
