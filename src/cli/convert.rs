//! `tch-diffusers convert`: a model with its weights in another dtype, in smaller files, or under a variant's names.

use crate::generate::dtype_name;
use crate::inspect::weight_files;
use crate::model::model_folder;
use crate::outcome::{ModelError, say};
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};
use tch_diffusers::configuration_utils::{ConfigMap, read_json, write_json};
use tch_diffusers::loaders::{Checkpoint, HubOptions, KeyMap, SaveOptions, StateDict, parse_size};
use tch_diffusers::{AutoencoderKL, CLIPTextModel, Error, KindExt, ModelMixin, StableDiffusionPipeline};

const EXAMPLES: &str = "\
Examples:
  tch-diffusers convert bundled shapes-bf16 --dtype bfloat16
  tch-diffusers convert ./stable-diffusion-v1-5 sd15-fp16 --dtype float16 --variant fp16
  tch-diffusers convert ./stable-diffusion-v1-5 sd15-shards --max-shard-size 500MB
  tch-diffusers convert v1-5-pruned-emaonly.safetensors sd15 --dtype float16
  tch-diffusers convert dreamshaper.safetensors dreamshaper --config ./stable-diffusion-v1-5

A single file of Stable Diffusion 1.x has weights alone: --config says where configurations and the tokenizer are.
diffusers and transformers read what is written. All but the weights is copied as it is. The folder has to be new or empty.";

/// Writes a model with its weights cast, in shards, or under a variant's names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Convert {
    /// A folder of a pipeline or a model, `owner/name` on the Hub, a single file of Stable Diffusion 1.x, or `bundled`
    #[arg(value_name = "IN")]
    input: String,
    /// Where it goes
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// float32, float16 or bfloat16 [default: as it is]
    #[arg(long, value_parser = dtype_name)]
    dtype: Option<String>,
    /// How large a file of weights may be, as in 500MB or 5GB [default: 10GB, and 50GB for models of transformers]
    #[arg(long, value_parser = parse_size)]
    max_shard_size: Option<u64>,
    /// The spelling of the new files, such as fp16 for model.fp16.safetensors
    #[arg(long)]
    variant: Option<String>,
    /// The spelling of the files to read
    #[arg(long, value_name = "VARIANT")]
    from_variant: Option<String>,
    /// The branch, tag or commit on the Hub [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// For a single file: a folder or `owner/name` in diffusers' format [default: stable-diffusion-v1-5's on the Hub]
    #[arg(long)]
    config: Option<String>,
}

impl Convert {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let kind = self.dtype.as_deref().map(Kind::from_torch_name).transpose()?;
        self.check_output()?;
        if Path::new(&self.input).is_file() {
            return self.single_file(kind.unwrap_or(Kind::Float));
        }
        let folder = model_folder(&self.input, self.revision.as_deref(), self.from_variant.as_deref(), false)?;
        if !folder.join("model_index.json").is_file() {
            let config: ConfigMap = read_json(&folder.join("config.json")).context(ModelError)?;
            let class = config.get("_class_name").and_then(|class| class.as_str()).unwrap_or_default();
            return self.convert(&folder, &self.output, class, kind);
        }
        let index: ConfigMap = read_json(&folder.join("model_index.json")).context(ModelError)?;
        for (name, component) in &index {
            let Some(class) = component.get(1).and_then(|class| class.as_str()) else { continue };
            self.convert(&folder.join(name), &self.output.join(name), class, kind)?;
        }
        copy(&folder.join("model_index.json"), &self.output.join("model_index.json"))
    }

    /// A checkpoint as its authors publish it becomes a pipeline's folder.
    fn single_file(&self, kind: Kind) -> anyhow::Result<()> {
        let hub = HubOptions { revision: self.revision.clone(), ..HubOptions::default() };
        let mut loader = StableDiffusionPipeline::from_single_file(&self.input).torch_dtype(kind).hub(hub);
        if let Some(config) = &self.config {
            loader = loader.config(config);
        }
        loader.load().context(ModelError)?.save_pretrained_with(&self.output, &self.options())?;
        say(self.output.display())?;
        Ok(())
    }

    fn options(&self) -> SaveOptions {
        SaveOptions { max_shard_size: self.max_shard_size, variant: self.variant.clone() }
    }

    /// Nothing that is there already is written over.
    fn check_output(&self) -> anyhow::Result<()> {
        let mut entries = std::fs::read_dir(&self.output).into_iter().flatten();
        if self.output.is_file() || entries.next().is_some() {
            let text = format!("{}: there is something already; name a new or an empty folder", self.output.display());
            bail!(Error::Argument(text));
        }
        Ok(())
    }

    /// One component: its weights, if it has any, and its other files.
    fn convert(&self, from: &Path, to: &Path, class: &str, kind: Option<Kind>) -> anyhow::Result<()> {
        std::fs::create_dir_all(to).map_err(Error::io(to))?;
        let mut has_weights = false;
        for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
            let path = entry.map_err(Error::io(from))?.path();
            let name = path.file_name().unwrap_or_default();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if ["safetensors", "bin", "msgpack", "onnx"].contains(&ending) {
                has_weights = true;
            } else if path.is_file() && !name.to_string_lossy().contains(".index.") {
                copy(&path, &to.join(name))?;
            }
        }
        if !has_weights {
            return Ok(());
        }
        let files = weight_files(from, self.from_variant.as_deref(), false).context(ModelError)?;
        let of_diffusers = |file: &PathBuf| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(AutoencoderKL::WEIGHTS_STEM))
        };
        let stem =
            if files.iter().all(of_diffusers) { AutoencoderKL::WEIGHTS_STEM } else { CLIPTextModel::WEIGHTS_STEM };
        // diffusers understands the old names of attention weights in single files only.
        let keys: KeyMap = match class {
            AutoencoderKL::CLASS_NAME => AutoencoderKL::KEYS,
            _ => |key| Some(key.to_string()),
        };
        let weights = Checkpoint::open(&files, keys, None, Device::Cpu).context(ModelError)?.state_dict()?;
        for file in StateDict::new(weights).cast(kind).save(to, stem, &self.options())? {
            say(file.display())?;
        }
        kind.map_or(Ok(()), |kind| note_dtype(&to.join("config.json"), kind))
    }
}

/// Configurations of transformers name the dtype that the weights are in.
fn note_dtype(path: &Path, kind: Kind) -> anyhow::Result<()> {
    let mut config: ConfigMap = read_json(path)?;
    let keys: Vec<_> = ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
    if !keys.is_empty() {
        for key in keys {
            config.insert(key.into(), kind.torch_name().into());
        }
        write_json(path, &config)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).map_err(Error::io(to))?;
    Ok(())
}
