//! `tch-diffusers convert`: a model with its weights in another dtype, in smaller files, or under a variant's names; from a
//! single file to a folder, and back.

use crate::generate::dtype_name;
use crate::inspect::weight_files;
use crate::model::model_folder;
use crate::outcome::{ModelError, say};
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};
use tch_diffusers::configuration_utils::{ConfigMap, read_json, write_json};
use tch_diffusers::loaders::single_file::{OriginalCheckpoint, check_single_file, original_state_dict};
use tch_diffusers::loaders::{Checkpoint, HubOptions, KeyMap, SaveOptions, StateDict, parse_size};
use tch_diffusers::{
    AutoencoderKL, CLIPTextModel, CLIPTokenizer, Error, KindExt, ModelMixin, StableDiffusionPipeline,
    UNet2DConditionModel,
};

const EXAMPLES: &str = "\
Examples:
  tch-diffusers convert bundled shapes-bf16 --dtype bfloat16
  tch-diffusers convert ./stable-diffusion-v1-5 sd15-fp16 --dtype float16 --variant fp16
  tch-diffusers convert ./stable-diffusion-v1-5 sd15-shards --max-shard-size 500MB
  tch-diffusers convert v1-5-pruned-emaonly.safetensors sd15 --dtype float16
  tch-diffusers convert v2-1_512-ema-pruned.safetensors sd21-base --prediction-type epsilon --image-size 512
  tch-diffusers convert dreamshaper.safetensors dreamshaper --config ./stable-diffusion-v1-5
  tch-diffusers convert ./stable-diffusion-v1-5 v1-5.safetensors --dtype float16

A single file of Stable Diffusion 1.x or 2.x has weights alone. Their configurations are known; the tokenizer comes from the
Hub, from --tokenizer, or with all configurations from --config. diffusers and transformers read what is written. From folder
to folder, all but the weights is copied as it is. The folder has to be new or empty; a name that ends in .safetensors is a
single file's.";

/// What a single file is called.
const SINGLE_FILE: &str = "safetensors";

/// Writes a model with its weights cast, in shards, or under a variant's names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Convert {
    /// A folder of a pipeline or a model, `owner/name` on the Hub, a single file of Stable Diffusion 1.x or 2.x, or `bundled`
    #[arg(value_name = "IN")]
    input: String,
    /// Where it goes: a folder, or for a pipeline's weights in one file a name that ends in .safetensors
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
    /// For a single file: a folder or `owner/name` in diffusers' format with configurations and tokenizer [default: those
    /// that are known, and the tokenizer on the Hub]
    #[arg(long)]
    config: Option<String>,
    /// For a single file: the folder of the tokenizer
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// For a single file: what the UNet predicts, epsilon or v_prediction [default: the configuration's]
    #[arg(long)]
    prediction_type: Option<String>,
    /// For a single file: the height and width that pictures have by default, in pixels [default: the configuration's]
    #[arg(long)]
    image_size: Option<i64>,
}

impl Convert {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let kind = self.dtype.as_deref().map(Kind::from_torch_name).transpose()?;
        self.check_output()?;
        let to_file = self.output.extension().is_some_and(|ending| ending == SINGLE_FILE);
        if to_file && (self.variant.is_some() || self.max_shard_size.is_some()) {
            bail!(Error::Argument("a single file has neither shards nor a variant: name a folder".into()));
        }
        let from_file = Path::new(&self.input);
        if from_file.is_file() && to_file {
            let weights = Checkpoint::open(&[from_file.into()], |key| Some(key.into()), None, Device::Cpu);
            return self.write_file(StateDict::new(weights.context(ModelError)?.state_dict()?).cast(kind));
        }
        if from_file.is_file() {
            return self.single_file(from_file, kind);
        }
        if self.config.is_some()
            || self.tokenizer.is_some()
            || self.prediction_type.is_some()
            || self.image_size.is_some()
        {
            let text = "--config, --tokenizer, --prediction-type and --image-size go with a single file as the input";
            bail!(Error::Argument(text.into()));
        }
        let folder = model_folder(&self.input, self.revision.as_deref(), self.from_variant.as_deref(), &[], false)?;
        if to_file {
            return self.folder_to_file(&folder, kind);
        }
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
    fn single_file(&self, file: &Path, kind: Option<Kind>) -> anyhow::Result<()> {
        let kind = match kind {
            Some(kind) => kind,
            None => check_single_file(file).context(ModelError)?.dtype().unwrap_or(Kind::Float),
        };
        let hub = HubOptions { revision: self.revision.clone(), ..HubOptions::default() };
        let mut loader = StableDiffusionPipeline::from_single_file(file).torch_dtype(kind).hub(hub);
        if let Some(config) = &self.config {
            loader = loader.config(config);
        }
        if let Some(folder) = &self.tokenizer {
            loader = loader.tokenizer(CLIPTokenizer::from_pretrained(folder).context(ModelError)?);
        }
        if let Some(prediction_type) = &self.prediction_type {
            loader = loader.prediction_type(prediction_type);
        }
        if let Some(pixels) = self.image_size {
            loader = loader.image_size(pixels);
        }
        loader.load().context(ModelError)?.save_pretrained_with(&self.output, &self.options())?;
        say(self.output.display())?;
        Ok(())
    }

    /// A pipeline's folder becomes the one file that the model's authors would have published.
    fn folder_to_file(&self, folder: &Path, kind: Option<Kind>) -> anyhow::Result<()> {
        let index: ConfigMap = read_json(&folder.join("model_index.json")).context(ModelError)?;
        let expected = [
            ("unet", UNet2DConditionModel::CLASS_NAME),
            ("vae", AutoencoderKL::CLASS_NAME),
            ("text_encoder", CLIPTextModel::CLASS_NAME),
        ];
        for (name, class) in expected {
            let found = index.get(name).and_then(|component| component.get(1)?.as_str()).unwrap_or("missing");
            if found != class {
                let text = format!("{}: `{name}` is {found}; a single file has a {class}", folder.display());
                bail!(anyhow::Error::new(Error::Unsupported(text)).context(ModelError));
            }
        }
        let weights = |name: &str, keys: KeyMap, of_transformers: bool| -> anyhow::Result<Vec<_>> {
            let files =
                weight_files(&folder.join(name), self.from_variant.as_deref(), of_transformers).context(ModelError)?;
            Ok(Checkpoint::open(&files, keys, None, Device::Cpu).context(ModelError)?.state_dict()?)
        };
        let weights = original_state_dict(OriginalCheckpoint {
            unet: weights("unet", UNet2DConditionModel::KEYS, false)?,
            vae: weights("vae", AutoencoderKL::KEYS, false)?,
            text_encoder: weights("text_encoder", CLIPTextModel::KEYS, true)?,
        });
        self.write_file(StateDict::new(weights.context(ModelError)?).cast(kind))
    }

    fn write_file(&self, weights: StateDict) -> anyhow::Result<()> {
        weights.save_file(&self.output)?;
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
