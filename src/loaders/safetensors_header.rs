//! The header of a safetensors file, read and checked before anything else of the file is.
//!
//! The format: eight bytes with the header's length, the header as JSON, and the tensors' bytes without gaps between them.

use crate::error::{Error, Result};
use safetensors::Dtype;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;

/// How long a header may be, in bytes: what the safetensors library itself reads at most.
const MAX_HEADER_SIZE: u64 = 100_000_000;

/// What a safetensors file says of its tensors. Everything in it was held to the file's own length.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetensorsHeader {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorEntry>,
    /// The free text of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Where the tensors' bytes begin in the file.
    pub(super) start: usize,
    /// How many bytes the file has.
    pub(super) size: usize,
}

/// One tensor of a [`SafetensorsHeader`].
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Its key.
    pub name: String,
    /// Its dtype as the format spells it, such as `F16`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its first byte, and the first byte after it, counted from where the tensors' bytes begin.
    pub data_offsets: (usize, usize),
    pub(super) kind: Dtype,
}

impl TensorEntry {
    /// Its number of elements.
    #[must_use]
    pub fn numel(&self) -> usize {
        self.shape.iter().map(|&side| side as usize).product()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data_offsets.1 - self.data_offsets.0
    }
}

impl SafetensorsHeader {
    /// Reads the header of the file at `path`, and nothing else of it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Config`], naming the tensor, what is expected and what is found, if
    /// it is no safetensors file: cut, with tensors that overlap, leave gaps or lie beyond its end, with a key twice ...
    pub fn read(path: &Path) -> Result<Self> {
        let invalid = |why: String| Error::Config(format!("{}: not a safetensors file: {why}", path.display()));
        let described = std::fs::metadata(path).map_err(Error::io(path))?;
        // Opening anything else, such as a pipe, could wait for ever.
        if !described.is_file() {
            return Err(invalid("it is no file".into()));
        }
        let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
        Self::parse(path, &mut file, described.len())
    }

    /// As [`SafetensorsHeader::read`], of a file that is open, or in memory, and has `size` bytes; errors name it as `path`.
    ///
    /// # Errors
    /// As there.
    pub fn parse(path: &Path, file: &mut impl Read, size: u64) -> Result<Self> {
        let invalid = |why: String| Error::Config(format!("{}: not a safetensors file: {why}", path.display()));
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| invalid("it is shorter than 8 bytes".into()))?;
        let length = u64::from_le_bytes(length);
        if length > size.saturating_sub(8) {
            return Err(invalid(format!(
                "its header of {length} bytes is longer than the file, which has {size} bytes"
            )));
        }
        if length > MAX_HEADER_SIZE {
            return Err(invalid(format!("its header has {length} bytes: at most {MAX_HEADER_SIZE} are read")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io(path))?;
        let text = std::str::from_utf8(&header).map_err(|error| invalid(format!("its header: {error}")))?;
        let Entries { tensors, metadata } =
            serde_json::from_str(text).map_err(|error| invalid(format!("its header: {error}")))?;
        let start = 8 + length as usize;
        let tensors = check(tensors, size - start as u64).map_err(invalid)?;
        Ok(Self { tensors, metadata, start, size: size as usize })
    }
}

/// The header as it is spelled: nothing but its syntax, and that no key comes twice, is known of it.
struct Entries {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { tensors: vec![], metadata: BTreeMap::new() };
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    let in_entry = |error| A::Error::custom(format!("`{name}`: {error}"));
                    if name == "__metadata__" {
                        entries.metadata = map.next_value::<Option<_>>().map_err(in_entry)?.unwrap_or_default();
                    } else {
                        let entry = map.next_value().map_err(in_entry)?;
                        entries.tensors.push((name, entry));
                    }
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The tensors in the order of their bytes, which have to follow each other from 0 to `length`.
fn check(entries: Vec<(String, Entry)>, length: u64) -> Result<Vec<TensorEntry>, String> {
    let mut entries = entries;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (first, last) = entry.data_offsets;
        if first != end {
            let what = if first < end { "overlap" } else { "leave a gap" };
            return Err(format!(
                "tensors {what}: `{name}` begins at byte {first}, and what is before it ends at {end}"
            ));
        }
        let takes = takes(&name, &entry)?;
        if last.checked_sub(first) != Some(takes) {
            let (dtype, shape) = (&entry.dtype, &entry.shape);
            return Err(format!(
                "`{name}`, {dtype} {shape:?}, takes {takes} bytes, and lies from byte {first} to {last}"
            ));
        }
        if last > length {
            return Err(format!("`{name}` ends at byte {last}, and the file has {length}; the download may be cut"));
        }
        end = last;
        tensors.push(TensorEntry {
            kind: dtype(&entry.dtype)?,
            shape: entry.shape.iter().map(|&side| side as i64).collect(),
            dtype: entry.dtype,
            data_offsets: (first as usize, last as usize),
            name,
        });
    }
    if end != length {
        return Err(format!("its tensors end at byte {end}, and the file has {length}: something else follows"));
    }
    Ok(tensors)
}

/// How many bytes a tensor of this dtype and shape has.
fn takes(name: &str, entry: &Entry) -> Result<u64, String> {
    let too_large = || format!("`{name}` has the shape {:?}, larger than any file", entry.shape);
    // Each side is held to what libtorch counts with, even where another one is 0.
    let sides = entry.shape.iter().map(|&side| i64::try_from(side).map(|_| side).map_err(|_| too_large()));
    let sides = sides.collect::<Result<Vec<_>, _>>()?;
    let numel = sides.iter().try_fold(1u64, |numel, &side| numel.checked_mul(side)).ok_or_else(too_large)?;
    let kind = dtype(&entry.dtype).map_err(|error| format!("`{name}`: {error}"))?;
    let bits = numel.checked_mul(kind.bitsize() as u64).ok_or_else(too_large)?;
    match bits % 8 {
        0 => Ok(bits / 8),
        _ => Err(format!("`{name}`, {} {:?}, does not end at a whole byte", entry.dtype, entry.shape)),
    }
}

fn dtype(name: &str) -> Result<Dtype, String> {
    let spelled: StrDeserializer<'_, ValueError> = name.into_deserializer();
    Dtype::deserialize(spelled).map_err(|_| format!("there is no dtype {name:?}"))
}
