//! What `from_pretrained` may be told.

use super::hub::HubOptions;
use crate::configuration_utils::{parse_json, read_json};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use tch::{Device, Kind};

/// What transformers calls the files of weights.
const TRANSFORMERS_STEM: &str = "model";

/// How weights are loaded: dtype, device, and which files.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The dtype that floating-point weights are cast to while loading. `None` is float32.
    pub torch_dtype: Option<Kind>,
    /// The spelling of the files, such as `fp16` for `model.fp16.safetensors`.
    pub variant: Option<String>,
    /// The folder inside the given one.
    pub subfolder: Option<String>,
    /// Where the weights go.
    pub device: Device,
    /// How they are had from the Hub, where a repository is named in the place of a folder.
    pub hub: HubOptions,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { torch_dtype: None, variant: None, subfolder: None, device: Device::Cpu, hub: HubOptions::default() }
    }
}

impl LoadOptions {
    /// `folder`, or its subfolder where one is asked for.
    #[must_use]
    pub fn folder(&self, folder: &Path) -> PathBuf {
        self.subfolder.as_ref().map_or_else(|| folder.to_path_buf(), |subfolder| folder.join(subfolder))
    }

    /// The safetensors files of the weights called `stem` in `folder`, in the order of their shards.
    ///
    /// `stem.safetensors`, or the shards that `stem.safetensors.index.json` lists; with a variant, `stem.fp16.safetensors`
    /// or the shards of `stem.safetensors.index.fp16.json`, which was called `stem.safetensors.fp16.index.json` once. Where
    /// there are both, models of diffusers are read from their shards and those of transformers are not, as there.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that is missing, [`Error::Unsupported`] if there are only pickle files.
    pub fn weight_files(&self, folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
        let infix = self.variant.as_ref().map(|variant| format!(".{variant}")).unwrap_or_default();
        let single = folder.join(format!("{stem}{infix}.safetensors"));
        let index = [format!("{stem}.safetensors.index{infix}.json"), format!("{stem}.safetensors{infix}.index.json")];
        let index = index.iter().map(|name| folder.join(name)).find(|index| index.is_file());
        match index {
            Some(index) if stem != TRANSFORMERS_STEM || !single.is_file() => return shards(&index),
            _ if single.is_file() => return Ok(vec![single]),
            _ => (),
        }
        for pickle in ["diffusion_pytorch_model", "pytorch_model"].map(|stem| folder.join(format!("{stem}{infix}.bin")))
        {
            if pickle.is_file() {
                return Err(Error::Unsupported(format!(
                    "{}: pickle files can run code and are not read; convert it with \
                     `safetensors.torch.save_file(torch.load(file, weights_only=True), ...)`",
                    pickle.display()
                )));
            }
        }
        Err(Error::io(single)(std::io::ErrorKind::NotFound.into()))
    }
}

/// The files that the index of a sharded checkpoint names.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let folder = index.parent().unwrap_or(Path::new(""));
    let names = shard_names(index, read_json(index)?)?;
    names.iter().map(|(name, key)| shard(index, folder, name, key)).collect()
}

/// What is read of the index of a sharded checkpoint.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that the index of a sharded checkpoint names, each once and sorted, with a key that is said to be in it. The
/// index is in memory; errors name it as the file at `path`.
///
/// # Errors
/// [`Error::Config`] if it is no such index, or names a file outside of its folder.
pub fn parse_shard_index(path: &Path, bytes: Vec<u8>) -> Result<Vec<(String, String)>> {
    shard_names(path, parse_json(path, bytes)?)
}

fn shard_names(path: &Path, Index { weight_map }: Index) -> Result<Vec<(String, String)>> {
    let mut names: Vec<_> = weight_map.into_iter().map(|(key, name)| (name, key)).collect();
    names.sort();
    names.dedup_by(|(name, _), (other, _)| name == other);
    if names.is_empty() {
        return Err(Error::Config(format!("{}: `weight_map` names no file", path.display())));
    }
    for (name, key) in &names {
        let mut parts = Path::new(name).components();
        let inside = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !inside || name.ends_with('/') {
            let text = format!("{}: shard `{name}` of `{key}` lies outside the folder", path.display());
            return Err(Error::Config(text));
        }
    }
    Ok(names)
}

/// The file `name` beside the index, which is said to hold `key`.
fn shard(index: &Path, folder: &Path, name: &str, key: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let why = format!("the index {} has `{key}` in it, and there is no such file", index.display());
    Err(Error::io(path)(std::io::Error::new(std::io::ErrorKind::NotFound, why)))
}
