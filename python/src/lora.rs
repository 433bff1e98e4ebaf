//! Low-rank adapters: files, and what is done with them in a model's tree of modules.

use crate::arguments::{config, kind, to_json};
use crate::bridge::PyTensor;
use crate::errors::OrRaise;
use crate::hub::Access;
use crate::models::cloned;
use crate::node::Node;
use pyo3::prelude::*;
use std::path::{Path, PathBuf};
use tch::Tensor;
use tch_diffusers::loaders::lora::{
    self, BlockWeights, LayerWeights, LoraLayers, SaveLora, SideWeights, UNetWeight, peft,
};
use tch_diffusers::loaders::{self, LoraOptions};
use tch_diffusers::{Error, nn};

/// Tensors by their keys.
type Weights = Vec<(String, PyTensor)>;

/// A LoRA as it stands in its file.
#[pyclass(frozen)]
pub(crate) struct LoraStateDict(std::sync::Mutex<loaders::LoraStateDict>);

impl LoraStateDict {
    fn with<T>(&self, work: impl FnOnce(&loaders::LoraStateDict) -> T) -> T {
        work(&self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[pymethods]
impl LoraStateDict {
    /// Reads a safetensors file.
    #[staticmethod]
    fn read(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| loaders::LoraStateDict::read(path)).or_raise().map(|lora| Self(lora.into()))
    }

    /// Takes tensors in one of the layouts.
    #[staticmethod]
    fn of(tensors: Weights) -> PyResult<Self> {
        let lora = loaders::LoraStateDict::from_tensors(Path::new("state_dict"), &bare(tensors), None);
        lora.or_raise().map(|lora| Self(lora.into()))
    }

    /// Reads a safetensors file with the LoRA of one model, whose keys begin with the prefix.
    #[staticmethod]
    #[pyo3(signature = (path, prefix=None))]
    fn read_of_model(py: Python<'_>, path: PathBuf, prefix: Option<&str>) -> PyResult<Self> {
        let lora = py.detach(|| loaders::LoraStateDict::read_of_model(path, prefix));
        lora.or_raise().map(|lora| Self(lora.into()))
    }

    /// Takes the tensors of one model, whose keys begin with the prefix; the metadata are JSON.
    #[staticmethod]
    #[pyo3(signature = (tensors, prefix=None, metadata=None))]
    fn of_model(tensors: Weights, prefix: Option<&str>, metadata: Option<&str>) -> PyResult<Self> {
        let name = Path::new("state_dict");
        let lora = loaders::LoraStateDict::from_tensors_of_model(name, &bare(tensors), metadata, prefix);
        lora.or_raise().map(|lora| Self(lora.into()))
    }

    /// The components that it has weights for.
    fn components(&self) -> Vec<String> {
        self.with(|lora| lora.components().into_iter().map(String::from).collect())
    }
}

fn bare(tensors: Weights) -> Vec<(String, Tensor)> {
    tensors.into_iter().map(|(key, PyTensor(tensor))| (key, tensor)).collect()
}

/// How much an adapter counts: a number, or by the blocks of a UNet.
#[derive(FromPyObject)]
pub(crate) enum Weight {
    Everywhere(f64),
    ByBlock(Blocks),
}

/// What diffusers' dictionary of weights may say.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Blocks {
    down: Option<Side>,
    mid: Option<Layers>,
    up: Option<Side>,
}

/// Weights of one side: for each block, or by the blocks' numbers.
#[derive(FromPyObject)]
enum Side {
    EachBlock(Layers),
    Blocks(Vec<(usize, Layers)>),
}

/// Weights of the attentions in a block.
#[derive(FromPyObject)]
enum Layers {
    All(f64),
    Each(Vec<f64>),
}

impl From<Layers> for LayerWeights {
    fn from(layers: Layers) -> Self {
        match layers {
            Layers::All(weight) => Self::All(weight),
            Layers::Each(weights) => Self::Each(weights),
        }
    }
}

impl From<Side> for SideWeights {
    fn from(side: Side) -> Self {
        match side {
            Side::EachBlock(layers) => Self::EachBlock(layers.into()),
            Side::Blocks(blocks) => {
                Self::Blocks(blocks.into_iter().map(|(number, layers)| (number, layers.into())).collect())
            }
        }
    }
}

impl TryFrom<Weight> for UNetWeight {
    type Error = Error;

    fn try_from(weight: Weight) -> Result<Self, Error> {
        let Blocks { down, mid, up } = match weight {
            Weight::Everywhere(weight) => return Ok(weight.into()),
            Weight::ByBlock(blocks) => blocks,
        };
        let mid = match mid {
            None => None,
            Some(Layers::All(weight)) => Some(weight),
            Some(Layers::Each(weights)) => match weights[..] {
                [weight] => Some(weight),
                _ => {
                    let text = format!("`mid` has 1 attention, and {} weights", weights.len());
                    return Err(Error::Argument(text));
                }
            },
        };
        Ok(BlockWeights { down: down.map(Into::into), mid, up: up.map(Into::into) }.into())
    }
}

fn options(weight_name: Option<String>, subfolder: Option<String>) -> LoraOptions {
    LoraOptions { weight_name, subfolder, ..LoraOptions::default() }
}

/// The path of a LoRA's file among those of a repository.
#[pyfunction]
#[pyo3(signature = (id, files, weight_name=None, subfolder=None))]
pub(crate) fn choose_lora_file(
    id: PathBuf,
    mut files: Vec<String>,
    weight_name: Option<String>,
    subfolder: Option<String>,
) -> PyResult<String> {
    files.sort();
    options(weight_name, subfolder).choose(&id, &files).or_raise()
}

/// A LoRA's file, in a folder or after it came from the Hub.
#[pyfunction]
#[pyo3(signature = (source, access, weight_name=None, subfolder=None))]
pub(crate) fn lora_file(
    py: Python<'_>,
    source: PathBuf,
    access: Access,
    weight_name: Option<String>,
    subfolder: Option<String>,
) -> PyResult<PathBuf> {
    let options = options(weight_name, subfolder).hub(access.options());
    py.detach(|| options.file(&source)).or_raise()
}

/// Adds a LoRA to models, which come with the names of their components, and gives the components that it was for.
#[pyfunction]
pub(crate) fn load_lora_adapter(
    models: Vec<(String, PyRef<'_, Node>)>,
    lora: &LoraStateDict,
    name: &str,
) -> PyResult<Vec<String>> {
    let models: Vec<_> = models.iter().map(|(component, node)| (component.as_str(), cloned(node))).collect();
    let models: Vec<_> = models.iter().map(|(component, node)| (*component, node)).collect();
    let loaded = lora.with(|lora| peft::load_lora_adapter(&models, lora, name)).or_raise()?;
    Ok(loaded.into_iter().map(String::from).collect())
}

/// The names of a model's adapters, in the order of their loading.
#[pyfunction]
pub(crate) fn list_adapters(model: &Node) -> Vec<String> {
    peft::list_adapters(&cloned(model))
}

/// The names of the adapters that take part.
#[pyfunction]
pub(crate) fn active_adapters(model: &Node) -> Option<Vec<String>> {
    peft::active_adapters(&cloned(model))
}

/// Has these adapters take part, each with a weight.
#[pyfunction]
pub(crate) fn set_adapters(model: &Node, names: Vec<String>, weights: Vec<Weight>) -> PyResult<()> {
    let weights = weights.into_iter().map(UNetWeight::try_from).collect::<Result<Vec<_>, _>>().or_raise()?;
    peft::set_adapter_weights(&cloned(model), &names, &weights).or_raise()
}

/// Has these adapters take part with the weights that they have.
#[pyfunction]
pub(crate) fn activate_adapters(model: &Node, names: Vec<String>) {
    peft::activate(&cloned(model), &names);
}

/// The factors of an adapter by their keys, and its configuration as JSON.
#[pyfunction]
pub(crate) fn lora_layers(model: &Node, name: &str) -> PyResult<(Weights, String)> {
    let layers = LoraLayers::of(&cloned(model), name).or_raise()?;
    let tensors = layers.state_dict.into_iter().map(|(key, tensor)| (key, PyTensor(tensor))).collect();
    Ok((tensors, to_json(&layers.metadata)?))
}

/// Writes the layers of one or several models, which come with a prefix and their configuration as JSON, to a file.
#[pyfunction]
#[pyo3(signature = (folder, parts, weight_name=None, dtype=None))]
pub(crate) fn save_lora_weights(
    py: Python<'_>,
    folder: PathBuf,
    parts: Vec<(String, Weights, Option<String>)>,
    weight_name: Option<String>,
    dtype: Option<&str>,
) -> PyResult<PathBuf> {
    let options = SaveLora { weight_name, dtype: dtype.map(kind).transpose()? };
    let layers = parts.into_iter().map(|(prefix, tensors, metadata)| {
        let metadata = metadata.map(|text| config(&text)).transpose()?;
        Ok((prefix, LoraLayers { state_dict: bare(tensors), metadata }))
    });
    let layers = layers.collect::<PyResult<Vec<_>>>()?;
    py.detach(move || {
        let parts: Vec<_> = layers.iter().map(|(prefix, layers)| (prefix.as_str(), layers)).collect();
        lora::save_lora_weights(folder, &parts, &options)
    })
    .or_raise()
}

/// Forgets an adapter.
#[pyfunction]
pub(crate) fn delete_adapter(model: &Node, name: &str) -> PyResult<()> {
    peft::delete_adapter(&cloned(model), name).or_raise()
}

/// Has no adapter take part.
#[pyfunction]
pub(crate) fn disable_lora(model: &Node) -> PyResult<()> {
    peft::disable_lora(&cloned(model)).or_raise()
}

/// Has the active adapters take part again.
#[pyfunction]
pub(crate) fn enable_lora(model: &Node) {
    peft::enable_lora(&cloned(model));
}

/// Adds adapters to the model's own weights.
#[pyfunction]
#[pyo3(signature = (model, lora_scale=1.0, safe_fusing=false, names=None))]
pub(crate) fn fuse_lora(
    py: Python<'_>,
    model: &Node,
    lora_scale: f64,
    safe_fusing: bool,
    names: Option<Vec<String>>,
) -> PyResult<()> {
    let model = cloned(model);
    py.detach(|| peft::fuse_lora(&model, lora_scale, safe_fusing, names.as_deref())).or_raise()
}

/// Takes adapters out of the model's own weights; says whether there were any.
#[pyfunction]
pub(crate) fn unfuse_lora(py: Python<'_>, model: &Node) -> PyResult<bool> {
    let model = cloned(model);
    py.detach(|| peft::unfuse_lora(&model)).or_raise()
}

/// The names of the adapters in the model's own weights.
#[pyfunction]
pub(crate) fn fused_loras(model: &Node) -> Vec<String> {
    peft::fused_loras(&cloned(model))
}

/// Forgets all adapters.
#[pyfunction]
pub(crate) fn unload_lora(model: &Node) {
    peft::unload_lora(&cloned(model));
}

/// Multiplies the weights of all adapters in the forwards of this thread, until it is set anew; gives what was set before.
#[pyfunction]
pub(crate) fn replace_lora_scale(scale: f64) -> f64 {
    nn::replace_lora_scale(scale)
}
