//! What `from_pretrained` may be told.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

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
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { torch_dtype: None, variant: None, subfolder: None, device: Device::Cpu }
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
    /// or the shards of `stem.safetensors.index.fp16.json`.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that is missing, [`Error::Unsupported`] if there are only pickle files.
    pub fn weight_files(&self, folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
        let infix = self.variant.as_ref().map(|variant| format!(".{variant}")).unwrap_or_default();
        let single = folder.join(format!("{stem}{infix}.safetensors"));
        if single.is_file() {
            return Ok(vec![single]);
        }
        let index = folder.join(format!("{stem}.safetensors.index{infix}.json"));
        if index.is_file() {
            return shards(&index);
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
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let Index { weight_map } = crate::configuration_utils::read_json(index)?;
    let mut names: Vec<_> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new(""));
    names
        .iter()
        .map(|name| match Path::new(name).components().count() {
            1 => Ok(folder.join(name)),
            _ => Err(Error::Config(format!("{}: shard `{name}` lies outside the folder", index.display()))),
        })
        .collect()
}
