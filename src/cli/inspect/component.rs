//! One component of a pipeline, by its files.

use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Device;
use tch_diffusers::configuration_utils::{ConfigMap, from_map, read_json};
use tch_diffusers::loaders::{Checkpoint, CheckpointReport, LoadOptions, SafetensorsHeader};
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, Error, FluxTransformer2DModel, ModelMixin, Result,
    StableDiffusionSafetyChecker, T5EncoderModel, UNet2DConditionModel,
};

/// What is known of a component.
#[derive(Debug, Default, Serialize)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) library: Option<String>,
    pub(super) class: String,
    pub(super) parameters: u64,
    pub(super) bytes: u64,
    /// In bytes.
    pub(super) dtypes: BTreeMap<String, u64>,
    /// Those that it is read from.
    pub(super) files: Vec<String>,
    pub(super) missing_files: Vec<String>,
    /// Weights that are not read: pickle files, other variants.
    pub(super) unexpected_files: Vec<String>,
    /// Of the classes that this library has.
    pub(super) missing_weights: Vec<String>,
    pub(super) wrong_shapes: Vec<String>,
    pub(super) unexpected_weights: Vec<String>,
    /// What could not be read.
    pub(super) problems: Vec<String>,
}

impl Component {
    /// How many things keep it from being loaded.
    pub(super) fn faults(&self) -> usize {
        [&self.missing_files, &self.missing_weights, &self.wrong_shapes, &self.problems]
            .map(|list| list.len())
            .iter()
            .sum()
    }

    /// A file of weights, of whatever class.
    pub(super) fn of_file(path: &Path) -> Self {
        let mut component = Self::default();
        component.count(&[path.to_path_buf()]);
        component
    }

    /// A component called `name`, of which the files are in `folder`.
    pub(super) fn of_folder(
        folder: &Path,
        name: &str,
        library: Option<&str>,
        class: &str,
        variant: Option<&str>,
    ) -> Self {
        let mut component =
            Self { name: name.into(), library: library.map(Into::into), class: class.into(), ..Self::default() };
        let has = |file: &str| folder.join(file).is_file();
        if class.ends_with("Scheduler") {
            component.require("scheduler_config.json", has("scheduler_config.json"));
        } else if class.contains("Tokenizer") {
            let vocabularies = ["tokenizer.json", "vocab.json", "spiece.model"];
            let vocabulary = vocabularies.into_iter().find(|file| has(file));
            component.require(vocabulary.unwrap_or("tokenizer.json"), vocabulary.is_some());
            if vocabulary == Some("vocab.json") {
                component.require("merges.txt", has("merges.txt"));
            }
        } else if class.contains("Processor") || class.contains("FeatureExtractor") {
            component.require("preprocessor_config.json", has("preprocessor_config.json"));
        } else {
            component.require("config.json", has("config.json"));
            component.weights(folder, variant);
        }
        component
    }

    fn require(&mut self, file: &str, is_there: bool) {
        let list = if is_there { &mut self.files } else { &mut self.missing_files };
        list.push(file.into());
    }

    fn weights(&mut self, folder: &Path, variant: Option<&str>) {
        let of_transformers = match &self.library {
            // A safety checker is a class of diffusers that transformers loads.
            Some(library) => ["transformers", "stable_diffusion"].contains(&library.as_str()),
            None => ["CLIP", "T5", StableDiffusionSafetyChecker::CLASS_NAME]
                .iter()
                .any(|start| self.class.starts_with(start)),
        };
        let files = match weight_files(folder, variant, of_transformers) {
            Ok(files) => files,
            Err(Error::Io { path, .. }) => {
                self.missing_files.push(file_name(&path));
                return;
            }
            Err(error) => {
                self.problems.push(error.to_string());
                return;
            }
        };
        self.count(&files);
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let is_weights = |path: &PathBuf| {
            path.extension()
                .is_some_and(|ending| ["safetensors", "bin", "msgpack", "onnx"].iter().any(|one| ending == *one))
        };
        let unexpected = entries.filter(|path| is_weights(path) && !files.contains(path));
        self.unexpected_files = unexpected.map(|path| file_name(&path)).collect();
        self.unexpected_files.sort();
        if !self.problems.is_empty() || !folder.join("config.json").is_file() {
            return;
        }
        let report = match self.class.as_str() {
            UNet2DConditionModel::CLASS_NAME => compare::<UNet2DConditionModel>(folder, &files),
            AutoencoderKL::CLASS_NAME => compare::<AutoencoderKL>(folder, &files),
            CLIPTextModel::CLASS_NAME => compare::<CLIPTextModel>(folder, &files),
            CLIPTextModelWithProjection::CLASS_NAME => compare::<CLIPTextModelWithProjection>(folder, &files),
            StableDiffusionSafetyChecker::CLASS_NAME => compare::<StableDiffusionSafetyChecker>(folder, &files),
            FluxTransformer2DModel::CLASS_NAME => compare::<FluxTransformer2DModel>(folder, &files),
            T5EncoderModel::CLASS_NAME => compare::<T5EncoderModel>(folder, &files),
            _ => return,
        };
        match report {
            Ok(CheckpointReport { missing, mismatches, unexpected }) => {
                (self.missing_weights, self.wrong_shapes, self.unexpected_weights) = (missing, mismatches, unexpected);
            }
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    /// Adds up what the files' headers say.
    fn count(&mut self, files: &[PathBuf]) {
        for file in files {
            self.files.push(file_name(file));
            match SafetensorsHeader::read(file) {
                Ok(header) => {
                    for tensor in header.tensors {
                        self.parameters += tensor.numel() as u64;
                        self.bytes += tensor.bytes() as u64;
                        *self.dtypes.entry(torch_name(&tensor.dtype)).or_default() += tensor.bytes() as u64;
                    }
                }
                Err(error) => self.problems.push(error.to_string()),
            }
        }
    }
}

/// The files of weights, whatever library they come from; the plain ones where there are none of the variant. Where there are
/// none at all, the error names what the library would have written.
pub(crate) fn weight_files(folder: &Path, variant: Option<&str>, of_transformers: bool) -> Result<Vec<PathBuf>> {
    let find = |stem: &str| {
        let named = |variant: Option<&str>| {
            let options = LoadOptions { variant: variant.map(Into::into), ..LoadOptions::default() };
            options.weight_files(folder, stem)
        };
        named(variant).or_else(|error| if variant.is_some() { named(None) } else { Err(error) })
    };
    let (own, other) = (AutoencoderKL::WEIGHTS_STEM, CLIPTextModel::WEIGHTS_STEM);
    let (first, second) = if of_transformers { (other, own) } else { (own, other) };
    find(first).or_else(|error| find(second).map_err(|_| error))
}

/// How the files fit the model that `config.json` describes. The weights are mapped, not read.
fn compare<M: ModelMixin>(folder: &Path, files: &[PathBuf]) -> Result<CheckpointReport> {
    let path = folder.join("config.json");
    let config = from_map(&read_json::<ConfigMap>(&path)?).map_err(|error| error.in_file(&path))?;
    let checkpoint = Checkpoint::open(files, M::KEYS, None, Device::Cpu)?;
    drop(M::from_weights(config, &checkpoint).map_err(|error| error.in_file(&path))?);
    Ok(checkpoint.into_report())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// torch's name of a dtype of the format.
fn torch_name(dtype: &str) -> String {
    let name = match dtype {
        "BF16" => "bfloat16",
        "BOOL" => "bool",
        "F8_E4M3" => "float8_e4m3fn",
        "F8_E5M2" => "float8_e5m2",
        "F64" | "F32" | "F16" => return dtype.replace('F', "float"),
        "I64" | "I32" | "I16" | "I8" => return dtype.replace('I', "int"),
        "U64" | "U32" | "U16" | "U8" => return dtype.replace('U', "uint"),
        other => other,
    };
    name.into()
}
