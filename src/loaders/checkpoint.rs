//! Safetensors files, mapped into memory.
//!
//! A tensor whose dtype already fits is a view of the map: it costs neither time nor memory until it is read. The map
//! lives as long as the last view, and is private: writing to a weight never reaches the file.

use super::safetensors_header::{SafetensorsHeader, TensorEntry};
use crate::error::{Error, Result};
use crate::nn::Weights;
use crate::torch::{KindExt, MappedFile, MappedTensor};
use safetensors::Dtype;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// How many weights a model may miss before it is given up: a hostile configuration asks for billions.
const MISSING_AT_MOST: usize = 100_000;

/// Maps a key as the file spells it to the model's spelling. Keys it answers with `None` are passed over.
pub type KeyMap = fn(&str) -> Option<String>;

/// The weights of one model, from one file or from several shards.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: HashMap<String, MappedTensor>,
    files: Vec<PathBuf>,
    kind: Option<Kind>,
    kept: &'static [&'static str],
    device: Device,
    state: Mutex<State>,
}

/// What building the model has asked for so far.
#[derive(Debug, Default)]
struct State {
    used: BTreeSet<String>,
    missing: Vec<String>,
    mismatches: Vec<String>,
}

/// How a checkpoint and a model fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The keys that the model has and the checkpoint lacks.
    pub missing: Vec<String>,
    /// One sentence for each weight of another shape.
    pub mismatches: Vec<String>,
    /// The keys that the checkpoint has and the model lacks, sorted.
    pub unexpected: Vec<String>,
}

impl Checkpoint {
    /// Maps `files`; `keys` gives their keys the model's spelling. Floating-point weights are cast to `kind` where it is
    /// given, and go to `device`, one by one as the model asks for them.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Config`] if it is no safetensors file or two weights have one
    /// name, [`Error::Unsupported`] for a dtype that tch cannot hold.
    pub fn open(files: &[PathBuf], keys: KeyMap, kind: Option<Kind>, device: Device) -> Result<Self> {
        let mut tensors: HashMap<String, MappedTensor> = HashMap::new();
        for file in files {
            let header = SafetensorsHeader::read(file)?;
            let map = MappedFile::open(file, header.size)?;
            for entry in &header.tensors {
                let Some(key) = keys(&entry.name) else { continue };
                match tensors.entry(key) {
                    Entry::Vacant(place) => place.insert(mapped(&map, header.start, entry)?),
                    Entry::Occupied(other) => {
                        return Err(Error::Config(format!(
                            "{}: `{}` is there twice: as `{}` in {} as well",
                            file.display(),
                            entry.name,
                            other.key(),
                            other.get().path().display()
                        )));
                    }
                };
            }
        }
        Ok(Self { tensors, files: files.to_vec(), kind, kept: &[], device, state: Mutex::default() })
    }

    /// Casts the weights of `modules`, which are names in the weights' paths, to float32 in place of another dtype.
    #[must_use]
    pub fn keep_in_fp32(mut self, modules: &'static [&'static str]) -> Self {
        self.kept = modules;
        self
    }

    /// Has each weight whose key ends with `whole` stand for several of as many rows each, with `parts` in its key's place.
    ///
    /// # Errors
    /// [`Error::Config`] if the rows do not divide, or a key is there already.
    pub fn split_rows(mut self, whole: &str, parts: &[&str]) -> Result<Self> {
        let stems: Vec<_> = self.tensors.keys().filter_map(|key| Some(key.strip_suffix(whole)?.to_string())).collect();
        for stem in stems {
            let Some(tensor) = self.tensors.remove(&format!("{stem}{whole}")) else { continue };
            let split = tensor.split_rows(parts.len()).ok_or_else(|| {
                let (file, shape, count) = (tensor.path().display(), tensor.shape(), parts.len());
                Error::Config(format!("{file}: `{stem}{whole}` of {shape:?} is not {count} weights below each other"))
            })?;
            for (part, tensor) in parts.iter().zip(split) {
                let key = format!("{stem}{part}");
                if let Some(other) = self.tensors.insert(key.clone(), tensor) {
                    return Err(Error::Config(format!("{}: `{key}` is there twice", other.path().display())));
                }
            }
        }
        Ok(self)
    }

    /// The keys of the file, in the model's spelling.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All weights by their keys in the model's spelling, sorted: views of the files, of which nothing is read yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a tensor at an odd address has no room.
    pub fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        let mut keys: Vec<_> = self.tensors.iter().collect();
        keys.sort_by_key(|(key, _)| key.as_str());
        keys.into_iter().map(|(key, mapped)| Ok((key.clone(), mapped.view()?))).collect()
    }

    /// Says whether everything that the model asked for was there; to be called once it is built.
    ///
    /// Keys that the model did not ask for are named in a warning, as diffusers does.
    ///
    /// # Errors
    /// [`Error::MissingWeights`] or [`Error::WeightShape`], with all keys at once.
    pub fn finish(self) -> Result<()> {
        let file = self.files.first().cloned().unwrap_or_default();
        let CheckpointReport { missing, mismatches, unexpected } = self.into_report();
        if !missing.is_empty() {
            return Err(Error::MissingWeights { file, keys: missing });
        }
        if !mismatches.is_empty() {
            return Err(Error::WeightShape { file, mismatches });
        }
        if !unexpected.is_empty() {
            tracing::warn!(
                "{}: {} weights that the model does not use: {unexpected:?}",
                file.display(),
                unexpected.len()
            );
        }
        Ok(())
    }

    /// What [`Checkpoint::finish`] judges, for whoever wants to know rather than to load.
    #[must_use]
    pub fn into_report(self) -> CheckpointReport {
        let State { used, missing, mismatches } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut unexpected: Vec<_> = self.tensors.into_keys().filter(|key| !used.contains(key)).collect();
        unexpected.sort();
        CheckpointReport { missing, mismatches, unexpected }
    }
}

impl Weights for Checkpoint {
    /// A weight that is missing or of another shape is answered with a stand-in without memory of its own, so that
    /// [`Checkpoint::finish`] can name all of them.
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mapped) = self.tensors.get(path) else {
            state.missing.push(path.to_string());
            if state.missing.len() >= MISSING_AT_MOST {
                let file = self.files.first().cloned().unwrap_or_default();
                return Err(Error::MissingWeights { file, keys: std::mem::take(&mut state.missing) });
            }
            return stand_in(shape);
        };
        state.used.insert(path.to_string());
        // Checkpoints of the first Stable Diffusions keep some linear maps as convolutions of one pixel.
        let found = mapped.shape();
        let same = found == shape || found.strip_suffix(&[1, 1]).is_some_and(|shorter| shorter == shape);
        if !same {
            state.mismatches.push(format!("`{path}` should be {shape:?} and is {found:?}"));
            return stand_in(shape);
        }
        drop(state);
        let tensor = mapped.view()?;
        let asked = self.kind.map(|kind| if is_below(path, self.kept) { Kind::Float } else { kind });
        let kind = asked.filter(|_| mapped.kind().is_floating_point()).unwrap_or(mapped.kind());
        let weight = tensor.f_view(shape)?.f_to_device(self.device)?.f_to_kind(kind)?;
        if weight.device() != Device::Cpu || weight.data_ptr() != tensor.data_ptr() {
            mapped.release()?;
        }
        Ok(weight)
    }

    fn origin(&self, path: &str) -> Option<MappedTensor> {
        self.tensors.get(path).cloned()
    }
}

/// Whether one of `modules` is a name in the dotted `path`.
pub(crate) fn is_below(path: &str, modules: &[&str]) -> bool {
    !modules.is_empty() && path.split('.').any(|name| modules.contains(&name))
}

/// The tensor of `entry` in a file whose data begin `start` bytes in.
pub(super) fn mapped(map: &Arc<MappedFile>, start: usize, entry: &TensorEntry) -> Result<MappedTensor> {
    MappedTensor::new(map, start + entry.data_offsets.0, stored_kind(map.path(), entry)?, &entry.shape)
}

/// As [`mapped`], a copy out of the `bytes` of a file called `name`.
pub(super) fn in_memory(name: &Path, bytes: &[u8], start: usize, entry: &TensorEntry) -> Result<Tensor> {
    let kind = stored_kind(name, entry)?;
    let (first, last) = entry.data_offsets;
    let own = bytes.get(start + first..start + last);
    let own =
        own.ok_or_else(|| Error::Config(format!("{}: `{}` reaches beyond the end", name.display(), entry.name)))?;
    Ok(Tensor::f_from_data_size(own, &entry.shape, kind)?)
}

fn stored_kind(file: &Path, entry: &TensorEntry) -> Result<Kind> {
    kind_of(entry.kind).ok_or_else(|| {
        let (file, TensorEntry { name, dtype, .. }) = (file.display(), entry);
        Error::Unsupported(format!("{file}: `{name}` has dtype {dtype}, which tch cannot hold"))
    })
}

fn stand_in(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false)?)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        Dtype::F8_E5M2 => Kind::Float8e5m2,
        _ => return None,
    })
}
