//! Writing weights: one safetensors file, or shards and their index.
//!
//! Mirrors `ModelMixin.save_pretrained` of `diffusers/models/modeling_utils.py` at 0.42.1, and
//! `split_torch_state_dict_into_shards` of `huggingface_hub/serialization/_base.py` at 2.4.

use super::tensor_bytes::TensorBytes;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What `save_pretrained` may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// How many bytes of weights go into one file: [`parse_size`] reads `"5GB"`. A weight larger than that has a file of
    /// its own. `None` is 10 GB, and 50 GB for models of transformers.
    pub max_shard_size: Option<u64>,
    /// The spelling of the files, such as `fp16` for `model.fp16.safetensors`.
    pub variant: Option<String>,
}

/// The number of bytes of `"5GB"`, `"200KB"` or `"1.5MB"`, which count in thousands; a bare number is bytes.
///
/// # Errors
/// [`Error::Argument`] for anything else.
pub fn parse_size(text: &str) -> Result<u64> {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)];
    let upper = text.trim().to_uppercase();
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((upper.strip_suffix(unit)?.trim(), *bytes)));
    let size = match unit {
        None => upper.parse().ok(),
        // As Python's `int` does, the part of a byte is dropped.
        Some((number, bytes)) => {
            let size = number.parse::<f64>().ok().map(|number| number * bytes);
            size.filter(|size| (0.0..1e18).contains(size)).map(|size| size as u64)
        }
    };
    size.ok_or_else(|| {
        Error::Argument(format!("size `{text}`: write bytes, or a number with KB, MB, GB or TB, as in 5GB"))
    })
}

/// Weights on their way to a file.
#[derive(Debug)]
pub struct StateDict {
    tensors: Vec<(String, Tensor)>,
    kind: Option<Kind>,
    metadata: HashMap<String, String>,
}

impl StateDict {
    /// Weights by their keys, in the order in which they fill shards.
    #[must_use]
    pub fn new(tensors: Vec<(String, Tensor)>) -> Self {
        Self { tensors, kind: None, metadata: [("format".into(), "pt".into())].into() }
    }

    /// Adds a text to the metadata of each file.
    #[must_use]
    pub fn metadata(mut self, key: &str, text: &str) -> Self {
        self.metadata.insert(key.into(), text.into());
        self
    }

    /// Casts floating-point weights to `kind`, one at a time while they are written.
    #[must_use]
    pub fn cast(mut self, kind: Option<Kind>) -> Self {
        self.kind = kind;
        self
    }

    /// Writes the weights to `folder`: `stem.safetensors`, or `stem-00001-of-00003.safetensors` and its like with
    /// `stem.safetensors.index.json`. Files of an earlier save that would be read in their place are removed, once the new
    /// ones are whole. Gives the files of the weights.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written, and [`Error::Unsupported`] for a dtype that safetensors does not know;
    /// the folder is as it was then. [`Error::Argument`] for a variant that no file name can hold.
    // Differs from diffusers: there, one file stays beside newer shards, and an index beside a newer file.
    pub fn save(&self, folder: &Path, stem: &str, options: &SaveOptions) -> Result<Vec<PathBuf>> {
        let infix = infix(options.variant.as_deref())?;
        let weights = self.tensors.iter().map(|(key, tensor)| TensorBytes::new(key, tensor, self.kind));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        // The shards of transformers' models are its own `save_pretrained`'s.
        let of_transformers = stem == "model";
        let limit = options.max_shard_size.unwrap_or(if of_transformers { 50_000_000_000 } else { 10_000_000_000 });
        let shards = split(&weights, limit);
        let name = |number: usize| match shards.len() {
            0 | 1 => format!("{stem}{infix}.safetensors"),
            count => format!("{stem}{infix}-{number:05}-of-{count:05}.safetensors"),
        };
        let names: Vec<_> = (1..=shards.len().max(1)).map(name).collect();
        let mut written = Temporaries::default();
        for (number, name) in names.iter().enumerate() {
            let temporary = written.beside(&folder.join(name));
            self.write_shard(shards.get(number).map(Vec::as_slice).unwrap_or_default(), &temporary)?;
        }
        let index = folder.join(format!("{stem}.safetensors.index{infix}.json"));
        if shards.len() > 1 {
            let text = index_text(&shards, &names, of_transformers)?;
            let temporary = written.beside(&index);
            std::fs::write(&temporary, text).map_err(Error::io(&index))?;
        }
        written.move_all()?;
        remove_stale(folder, stem, &infix, &names, (shards.len() <= 1).then_some(index))?;
        Ok(names.iter().map(|name| folder.join(name)).collect())
    }

    /// Writes all weights to one file, which is there once it is whole.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Unsupported`] for a dtype that safetensors does not know.
    pub fn save_file(&self, path: &Path) -> Result<()> {
        let weights = self.tensors.iter().map(|(key, tensor)| TensorBytes::new(key, tensor, self.kind));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let mut written = Temporaries::default();
        let temporary = written.beside(path);
        self.write_shard(&weights.iter().collect::<Vec<_>>(), &temporary)?;
        written.move_all()
    }

    fn write_shard(&self, shard: &[&TensorBytes<'_>], path: &Path) -> Result<()> {
        // The crate writes files that none but their owner can read; these are as readable as any other new file.
        let permissions =
            std::fs::File::create(path).and_then(|file| file.metadata()).map_err(Error::io(path))?.permissions();
        let views = shard.iter().map(|weight| (weight.key, *weight));
        safetensors::serialize_to_file(views, Some(self.metadata.clone()), path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(error) => Error::io(path)(error),
            other => Error::Torch(format!("{}: {other}", path.display())),
        })?;
        shard.iter().find_map(|weight| weight.failure.take()).map_or(Ok(()), Err)?;
        std::fs::set_permissions(path, permissions).map_err(Error::io(path))
    }
}

/// What a variant adds to a file's name.
fn infix(variant: Option<&str>) -> Result<String> {
    let Some(variant) = variant else { return Ok(String::new()) };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if variant.is_empty() || !variant.chars().all(fits) {
        return Err(Error::Argument(format!(
            "variant `{variant}`: letters, digits, `_` and `-` fit into a file's name"
        )));
    }
    Ok(format!(".{variant}"))
}

/// Which weights share a file: in order, and as many as fit. What is larger than a file has one of its own.
fn split<'a, 'b>(weights: &'b [TensorBytes<'a>], limit: u64) -> Vec<Vec<&'b TensorBytes<'a>>> {
    let (mut shards, mut current, mut size) = (vec![], vec![], 0);
    for weight in weights {
        let bytes = weight.bytes as u64;
        if bytes > limit {
            shards.push(vec![weight]);
            continue;
        }
        if size + bytes > limit {
            shards.push(std::mem::take(&mut current));
            size = 0;
        }
        current.push(weight);
        size += bytes;
    }
    if !current.is_empty() {
        shards.push(current);
    }
    shards
}

/// The text of `*.safetensors.index.json`, keys sorted.
fn index_text(shards: &[Vec<&TensorBytes<'_>>], names: &[String], of_transformers: bool) -> Result<String> {
    let weights = shards.iter().zip(names).flat_map(|(shard, name)| shard.iter().map(move |weight| (*weight, name)));
    let weight_map: BTreeMap<_, _> = weights.clone().map(|(weight, name)| (weight.key, name)).collect();
    let mut metadata = BTreeMap::new();
    if of_transformers {
        metadata.insert("total_parameters", weights.clone().map(|(weight, _)| weight.tensor.numel()).sum::<usize>());
    }
    metadata.insert("total_size", weights.map(|(weight, _)| weight.bytes).sum());
    let index: BTreeMap<&str, Value> = [("metadata", json!(metadata)), ("weight_map", json!(weight_map))].into();
    let text = serde_json::to_string_pretty(&index).map_err(|error| Error::Config(error.to_string()))?;
    Ok(text + "\n")
}

/// Removes what an earlier save left and what would be read in the place of `names` or beside them.
fn remove_stale(folder: &Path, stem: &str, infix: &str, names: &[String], index: Option<PathBuf>) -> Result<()> {
    let is_shard = |name: &str| {
        let numbers = name.strip_prefix(&format!("{stem}{infix}-")).and_then(|rest| rest.strip_suffix(".safetensors"));
        let numbers = numbers.and_then(|numbers| numbers.split_once("-of-"));
        numbers.is_some_and(|(number, count)| {
            [number, count].iter().all(|text| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()))
        })
    };
    let single = format!("{stem}{infix}.safetensors");
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let written = names.iter().any(|written| written == name);
        let is_index = index.as_ref().is_some_and(|index| *index == path);
        if is_index || (!written && (is_shard(name) || name == single)) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// Files under names of their own, until all of them are whole. What is not moved by then is removed.
#[derive(Default)]
struct Temporaries(Vec<(PathBuf, PathBuf)>);

impl Temporaries {
    /// A name for what shall become `path`.
    fn beside(&mut self, path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_os_string();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        self.0.push((temporary.clone(), path.to_path_buf()));
        temporary
    }

    fn move_all(mut self) -> Result<()> {
        for (temporary, path) in &self.0 {
            std::fs::rename(temporary, path).map_err(Error::io(path))?;
        }
        self.0.clear();
        Ok(())
    }
}

impl Drop for Temporaries {
    fn drop(&mut self) {
        for (temporary, _) in &self.0 {
            // Whatever went wrong is reported already.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_count_in_thousands() {
        let cases = [("5GB", 5_000_000_000), ("200 kb", 200_000), ("1.5MB", 1_500_000), ("77", 77), ("0", 0)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "-1", "-1GB", "5GiB", "NaNGB", "1e40TB", "five"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains("as in 5GB"), "{text}: {error}");
        }
    }
}
