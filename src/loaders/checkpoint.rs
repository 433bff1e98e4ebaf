//! Safetensors files, mapped into memory.
//!
//! A tensor whose dtype already fits is a view of the map: it costs neither time nor memory until it is read. The map
//! lives as long as the last view, and is private: writing to a weight never reaches the file.

use crate::error::{Error, Result};
use crate::nn::Weights;
use crate::torch::{MappedFile, MappedTensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Maps a key as the file spells it to the model's spelling. Keys it answers with `None` are passed over.
pub type KeyMap = fn(&str) -> Option<String>;

/// The weights of one model, from one file or from several shards.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: HashMap<String, MappedTensor>,
    files: Vec<PathBuf>,
    kind: Option<Kind>,
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

impl Checkpoint {
    /// Maps `files`; `keys` gives their keys the model's spelling. Floating-point weights are cast to `kind` where it is
    /// given, and go to `device`, one by one as the model asks for them.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Config`] if it is no safetensors file.
    pub fn open(files: &[PathBuf], keys: KeyMap, kind: Option<Kind>, device: Device) -> Result<Self> {
        let mut tensors = HashMap::new();
        for file in files {
            let (map, metadata, start) = map_file(file)?;
            for (name, info) in metadata.tensors() {
                let Some(key) = keys(&name) else { continue };
                tensors.insert(key, mapped(&map, start, info, &name)?);
            }
        }
        Ok(Self { tensors, files: files.to_vec(), kind, device, state: Mutex::default() })
    }

    /// The keys of the file, in the model's spelling.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Says whether everything that the model asked for was there; to be called once it is built.
    ///
    /// Keys that the model did not ask for are named in a warning, as diffusers does.
    ///
    /// # Errors
    /// [`Error::MissingWeights`] or [`Error::WeightShape`], with all keys at once.
    pub fn finish(self) -> Result<()> {
        let file = self.files.first().cloned().unwrap_or_default();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !state.missing.is_empty() {
            return Err(Error::MissingWeights { file, keys: state.missing });
        }
        if !state.mismatches.is_empty() {
            return Err(Error::WeightShape { file, mismatches: state.mismatches });
        }
        let mut unexpected: Vec<_> = self.tensors.keys().filter(|key| !state.used.contains(*key)).collect();
        if !unexpected.is_empty() {
            unexpected.sort();
            tracing::warn!(
                "{}: {} weights that the model does not use: {unexpected:?}",
                file.display(),
                unexpected.len()
            );
        }
        Ok(())
    }
}

impl Weights for Checkpoint {
    /// A weight that is missing or of another shape is answered with a stand-in without memory of its own, so that
    /// [`Checkpoint::finish`] can name all of them.
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mapped) = self.tensors.get(path) else {
            state.missing.push(path.to_string());
            return stand_in(shape);
        };
        state.used.insert(path.to_string());
        let tensor = mapped.view()?;
        // Checkpoints of the first Stable Diffusions keep some linear maps as convolutions of one pixel.
        let found = mapped.shape();
        let same = found == shape || found.strip_suffix(&[1, 1]).is_some_and(|shorter| shorter == shape);
        if !same {
            state.mismatches.push(format!("`{path}` should be {shape:?} and is {found:?}"));
            return stand_in(shape);
        }
        drop(state);
        let kind = self.kind.filter(|_| is_floating_point(mapped.kind())).unwrap_or(mapped.kind());
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

/// The tensor called `name` of a file whose data begin `start` bytes in.
fn mapped(map: &Arc<MappedFile>, start: usize, info: &TensorInfo, name: &str) -> Result<MappedTensor> {
    let kind = kind_of(info.dtype).ok_or_else(|| {
        Error::Unsupported(format!(
            "{}: `{name}` has dtype {:?}, which tch cannot hold",
            map.path().display(),
            info.dtype
        ))
    })?;
    let shape: Vec<_> = info.shape.iter().map(|&side| side as i64).collect();
    MappedTensor::new(map, start + info.data_offsets.0, kind, &shape)
}

/// The whole file as bytes, its header, and where the data begins.
fn map_file(path: &Path) -> Result<(Arc<MappedFile>, Metadata, usize)> {
    let invalid = |why: String| Error::Config(format!("{}: not a safetensors file: {why}", path.display()));
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| invalid("it is shorter than 8 bytes".into()))?;
    let length = u64::from_le_bytes(length);
    if length > size.saturating_sub(8) {
        return Err(invalid("its header is longer than the file".into()));
    }
    let mut head = vec![0; 8 + length as usize];
    head[..8].copy_from_slice(&length.to_le_bytes());
    file.read_exact(&mut head[8..]).map_err(Error::io(path))?;
    let metadata = read_header(&head).map_err(|error| invalid(error.to_string()))?;
    let start = head.len();
    let expected = (start + metadata.data_len()) as u64;
    if expected != size {
        return Err(invalid(format!("its header describes {expected} bytes, it has {size}; the download may be cut")));
    }
    Ok((MappedFile::open(path, size as usize)?, metadata, start))
}

/// The header alone: the crate checks offsets, overlaps and lengths.
fn read_header(head: &[u8]) -> std::result::Result<Metadata, safetensors::SafeTensorError> {
    let json = std::str::from_utf8(&head[8..]).map_err(safetensors::SafeTensorError::InvalidHeader)?;
    serde_json::from_str(json).map_err(safetensors::SafeTensorError::InvalidHeaderDeserialization)
}

fn stand_in(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_zeros([1], (Kind::Float, Device::Cpu))?.f_expand(shape, false)?)
}

fn is_floating_point(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double | Kind::Float8e4m3fn | Kind::Float8e5m2)
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
