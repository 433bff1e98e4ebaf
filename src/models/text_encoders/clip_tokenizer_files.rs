//! The files a CLIP tokenizer is stored in: `vocab.json` and `merges.txt`, as the hub has them, or the one
//! `tokenizer.json` that transformers 5 writes, and `tokenizer_config.json` beside them.
//!
//! Mirrors what `from_pretrained` of `transformers/tokenization_utils_base.py` at 5.23 takes from them.

use super::clip_special_tokens::{CLIP_ROLES, RoleTokens, SpecialTokens};
use crate::configuration_utils::{ConfigMap, read_json};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

/// What a tokenizer's folder says, all layouts brought to one.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    pub(super) vocab: Vocab,
    pub(super) merges: Merges,
    pub(super) roles: RoleTokens,
    /// The tokens to register beside the vocabulary, in order.
    pub(super) added_tokens: Vec<AddedToken>,
    /// In tokens, with the two special ones; `None` if no file says.
    pub(super) model_max_length: Option<usize>,
    pub(super) pad_left: bool,
    pub(super) truncate_left: bool,
    /// Whether special tokens that a prompt spells out are plain text.
    pub(super) split_special_tokens: bool,
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<ConfigMap>,
}

#[derive(Deserialize)]
struct ModelJson {
    vocab: Vocab,
    merges: Vec<MergeJson>,
}

/// A merge is a pair, or in older files one line.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Pair(String, String),
    Line(String),
}

impl TokenizerFiles {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let whole: Option<TokenizerJson> = optional(&path)?;
        let config: ConfigMap = optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let serialized = whole.as_ref().map(|file| file.added_tokens.as_slice()).unwrap_or_default();
        let specials = SpecialTokens::read(folder, &config, serialized, &CLIP_ROLES)?;
        let (vocab, merges) = match whole {
            Some(TokenizerJson { model, .. }) => (model.vocab, pairs(model.merges)?),
            None => (read_json(&folder.join("vocab.json"))?, read_merges(&folder.join("merges.txt"))?),
        };
        Ok(Self {
            vocab,
            merges,
            roles: specials.role_tokens()?,
            added_tokens: specials.to_register(),
            model_max_length: model_max_length(&config),
            pad_left: is_left(&config, "padding_side")?,
            truncate_left: is_left(&config, "truncation_side")?,
            split_special_tokens: config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// The JSON file at `path`, or `None` if there is none.
pub(super) fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

/// Copies those of the files called `names` that are in folder `from` to folder `to`, which is made if it is not there.
pub(super) fn copy_files(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io(to))?;
    for (from, to) in names.iter().map(|name| (from.join(name), to.join(name))) {
        if from.is_file() && from != to {
            std::fs::copy(&from, &to).map_err(Error::io(&to))?;
        }
    }
    Ok(())
}

pub(super) fn is_left(config: &ConfigMap, key: &str) -> Result<bool> {
    match config.get(key).and_then(Value::as_str) {
        None | Some("right") => Ok(false),
        Some("left") => Ok(true),
        Some(other) => Err(Error::Tokenizer(format!("`{key}` is `{other}`: it can be left or right"))),
    }
}

/// transformers writes 10^30 where no limit is known; that is none.
pub(super) fn model_max_length(config: &ConfigMap) -> Option<usize> {
    let length = config.get("model_max_length").or_else(|| config.get("max_len"))?;
    length.as_u64().and_then(|length| usize::try_from(length).ok())
}

fn pairs(merges: Vec<MergeJson>) -> Result<Merges> {
    let pair = |merge| match merge {
        MergeJson::Pair(a, b) => Ok((a, b)),
        MergeJson::Line(line) => {
            split_merge(&line).ok_or_else(|| Error::Tokenizer(format!("tokenizer.json: merge `{line}` is no pair")))
        }
    };
    merges.into_iter().map(pair).collect()
}

/// `merges.txt`: a pair each line, the one that merges first at the top, after a line with a version.
fn read_merges(path: &Path) -> Result<Merges> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    let broken = |number| Error::Tokenizer(format!("merges.txt: line {} is no pair", number + 1));
    lines.map(|(number, line)| split_merge(line).ok_or_else(|| broken(number))).collect()
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!b.contains(' ')).then(|| (a.into(), b.into()))
}
