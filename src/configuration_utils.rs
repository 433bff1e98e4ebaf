//! Reading and writing `config.json` and its kin.
//!
//! Mirrors `diffusers/configuration_utils.py`: missing keys take their defaults, unknown keys are kept.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// A configuration as it stands in its file: every key, known or not, in order.
pub type ConfigMap = serde_json::Map<String, serde_json::Value>;

/// The release of diffusers whose formats and numbers are mirrored; written to `_diffusers_version`.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

/// The numbers that Python's `json` writes bare, though JSON lacks them. A [`ConfigMap`] holds them as text.
const NOT_IN_JSON: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// How long a JSON file may be, in bytes. The longest in use, tokenizers and indices of shards, have a tenth of it.
const MAX_JSON_SIZE: u64 = 1 << 28;

/// Reads the JSON file at `path` into `T`. Python's bare `-Infinity`, `Infinity` and `NaN` are read as text.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Config`] (with file, line and key) if it does not fit `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let refuse = |why: String| Error::Config(format!("{}: {why}", path.display()));
    let described = std::fs::metadata(path).map_err(Error::io(path))?;
    if !described.is_file() {
        return Err(refuse("it is no file".into()));
    }
    if described.len() > MAX_JSON_SIZE {
        return Err(refuse(format!("it has {} bytes: at most {MAX_JSON_SIZE} are read as JSON", described.len())));
    }
    parse_json(path, std::fs::read(path).map_err(Error::io(path))?)
}

/// As [`read_json`], of what is in memory already; errors name it as the file at `path`.
///
/// # Errors
/// [`Error::Config`] (with file, line and key) if it does not fit `T`.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: Vec<u8>) -> Result<T> {
    let refuse = |why: String| Error::Config(format!("{}: {why}", path.display()));
    let text = String::from_utf8(bytes).map_err(|error| refuse(error.utf8_error().to_string()))?;
    let text = quote_infinities(&text);
    let mut json = serde_json::Deserializer::from_str(&text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| refuse(spelled(&error)))?;
    json.end().map_err(|error| refuse(error.to_string()))?;
    Ok(value)
}

/// The error with the key it is about, unless it is about the whole.
fn spelled(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string() {
        whole if whole == "." => error.inner().to_string(),
        key => format!("`{key}`: {}", error.inner()),
    }
}

/// Writes `value` to `path` as diffusers does: two spaces, keys sorted, a newline at the end.
///
/// # Errors
/// [`Error::Io`] if it cannot be written.
pub fn write_json(path: &Path, value: &ConfigMap) -> Result<()> {
    let sorted: std::collections::BTreeMap<_, _> = value.iter().collect();
    let text = serde_json::to_string_pretty(&sorted).map_err(|error| Error::Config(error.to_string()))?;
    let text = NOT_IN_JSON.iter().fold(text, |text, name| text.replace(&format!(": \"{name}\""), &format!(": {name}")));
    std::fs::write(path, text + "\n").map_err(Error::io(path))
}

/// Puts quotation marks around the numbers that are not JSON's, outside of strings.
fn quote_infinities(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(first) = rest.chars().next() {
        let name = NOT_IN_JSON.iter().find(|name| !in_string && rest.starts_with(**name));
        let length = match name {
            Some(name) => name.len(),
            None if in_string && first == '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            None => first.len_utf8(),
        };
        in_string ^= first == '"';
        let (token, after) = rest.split_at(length);
        quoted += &name.map_or_else(|| token.to_string(), |name| format!("\"{name}\""));
        rest = after;
    }
    quoted
}

/// Fills `T` from `map`; keys that `T` does not know are passed over.
///
/// # Errors
/// [`Error::Config`] with the key that does not fit.
pub fn from_map<T: DeserializeOwned>(map: &ConfigMap) -> Result<T> {
    let value = serde_json::Value::Object(map.clone());
    serde_path_to_error::deserialize(value).map_err(|error| Error::Config(spelled(&error)))
}

/// A value for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    // A list is tried first: where `T` is itself of this kind, a plain list holds a value for each block.
    /// One for each block, in order.
    Many(Vec<T>),
    /// The same for all.
    One(T),
}

impl<T: Clone> OneOrMany<T> {
    /// One value for each of `blocks` blocks.
    ///
    /// # Errors
    /// [`Error::Config`], naming `key`, if there are several values, but not `blocks` of them.
    pub fn spread(&self, key: &str, blocks: usize) -> Result<Vec<T>> {
        match self {
            Self::One(value) => Ok(vec![value.clone(); blocks]),
            Self::Many(values) if values.len() == blocks => Ok(values.clone()),
            Self::Many(values) => {
                Err(Error::Config(format!("`{key}` has {} values for {blocks} blocks", values.len())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"layers": "two"}"#).unwrap();
        #[derive(Debug, Deserialize)]
        struct Layers {
            #[allow(dead_code)]
            layers: i64,
        }
        let error = read_json::<Layers>(&path).unwrap_err();
        assert!(error.to_string().contains("config.json: `layers`: invalid type"), "{error}");
        assert!(matches!(read_json::<Layers>(&folder.path().join("none.json")), Err(Error::Io { .. })));
    }

    #[test]
    fn pythons_infinities_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let text = "{\n  \"a\": -Infinity,\n  \"b\": \"say \\\"NaN, Infinity\"\n}\n";
        std::fs::write(&path, text).unwrap();
        let map: ConfigMap = read_json(&path).unwrap();
        assert_eq!((map["a"].as_str(), map["b"].as_str()), (Some("-Infinity"), Some("say \"NaN, Infinity")));
        write_json(&path, &map).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn one_value_serves_all_blocks() {
        assert_eq!(OneOrMany::One(8).spread("k", 3).unwrap(), [8, 8, 8]);
        let error = OneOrMany::Many(vec![5, 10]).spread("attention_head_dim", 4).unwrap_err();
        assert_eq!(error.to_string(), "`attention_head_dim` has 2 values for 4 blocks");
    }
}
