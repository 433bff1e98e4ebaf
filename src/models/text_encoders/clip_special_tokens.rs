//! The special tokens of a tokenizer, CLIP's or T5's.
//!
//! Mirrors how `from_pretrained` of `transformers/tokenization_utils_base.py` and the constructor of
//! `tokenization_utils_tokenizers.py` at 5.23 gather them. Where they stand decides whether a prompt that spells one out
//! has it recognised, and in which case of letters, so that the order of the steps below is kept.

use super::clip_tokenizer_files::optional;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;
use tokenizers::AddedToken;

/// The roles that transformers knows, in its order, and a tokenizer's default for each.
pub(super) type Roles = [(&'static str, Option<&'static str>); 7];

/// CLIP's.
pub(super) const CLIP_ROLES: Roles = [
    ("bos_token", Some("<|startoftext|>")),
    ("eos_token", Some("<|endoftext|>")),
    ("unk_token", Some("<|endoftext|>")),
    ("sep_token", None),
    ("pad_token", Some("<|endoftext|>")),
    ("cls_token", None),
    ("mask_token", None),
];

/// T5's.
pub(super) const T5_ROLES: Roles = [
    ("bos_token", None),
    ("eos_token", Some("</s>")),
    ("unk_token", Some("<unk>")),
    ("sep_token", None),
    ("pad_token", Some("<pad>")),
    ("cls_token", None),
    ("mask_token", None),
];

/// The texts of the tokens that have a role.
#[derive(Debug)]
pub(super) struct RoleTokens {
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) unk: String,
    pub(super) pad: String,
}

/// A special token as configurations spell it: bare text, or text with properties. The two never equal each other.
#[derive(Clone, Debug, PartialEq)]
enum Special {
    Text(String),
    Token(AddedToken),
}

impl Special {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Token(token) => &token.content,
        }
    }

    /// `special` is taken for granted in `special_tokens_map.json`, whose entries do not say it.
    fn read(value: &Value, special: bool) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Object(map) => added_token(map, special).map(Self::Token),
            _ => None,
        }
    }

    fn into_token(self) -> AddedToken {
        match self {
            Self::Text(text) => AddedToken::from(text, true),
            Self::Token(token) => token,
        }
    }
}

/// An `AddedToken` in JSON. What is not `special` is matched in the normalized text, unless it says otherwise.
fn added_token(map: &ConfigMap, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| map.get(key).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    Some(AddedToken {
        content: map.get("content")?.as_str()?.into(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}

/// All special tokens of a folder.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    names: [&'static str; 7],
    roles: [Option<Special>; 7],
    /// Those that a file gives an id, by id.
    numbered: Vec<AddedToken>,
    /// Those without a role; none if no file lists them.
    extra: Option<Vec<Special>>,
}

impl SpecialTokens {
    /// `config` is `tokenizer_config.json` and `serialized` the `added_tokens` of `tokenizer.json`. An
    /// `added_tokens_decoder` in `config` replaces the other files that tokens may be in.
    pub(super) fn read(folder: &Path, config: &ConfigMap, serialized: &[ConfigMap], defaults: &Roles) -> Result<Self> {
        if let Some(Value::Object(decoder)) = config.get("added_tokens_decoder") {
            return Ok(Self::gather(config, &ConfigMap::new(), in_decoder(decoder)?, defaults));
        }
        let map: ConfigMap = optional(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
        let added: ConfigMap = optional(&folder.join("added_tokens.json"))?.unwrap_or_default();
        let roles = Self::gather(config, &map, Vec::new(), defaults);
        let numbered = in_older_files(&added, serialized, |text| roles.has_role(text))?;
        Ok(Self::gather(config, &map, numbered, defaults))
    }

    /// Looks each role up in `map` (`special_tokens_map.json`), then in `config`; properties come from the numbered
    /// token of the same text where there is one.
    fn gather(config: &ConfigMap, map: &ConfigMap, mut numbered: Vec<(u64, AddedToken)>, defaults: &Roles) -> Self {
        numbered.sort_by_key(|(id, _)| *id);
        let numbered: Vec<AddedToken> = numbered.into_iter().map(|(_, token)| token).collect();
        let roles = defaults.map(|(role, default)| {
            let special = match (map.get(role), config.get(role)) {
                (Some(value), _) => Special::read(value, true),
                (None, Some(value)) => Special::read(value, false),
                (None, None) => default.map(|text| Special::Text(text.into())),
            }?;
            let properties = numbered.iter().rev().find(|token| token.content == special.text());
            Some(properties.cloned().map_or(special, Special::Token))
        });
        let lists =
            [config, map].map(|file| ["extra_special_tokens", "additional_special_tokens"].map(|key| file.get(key)));
        let extra = lists.into_iter().flatten().flatten().find_map(Value::as_array);
        let extra = extra.map(|list| list.iter().filter_map(|value| Special::read(value, false)).collect());
        Self { names: defaults.map(|(role, _)| role), roles, numbered, extra }
    }

    fn has_role(&self, text: &str) -> bool {
        self.roles.iter().flatten().any(|special| special.text() == text)
    }

    /// The text of the token that has `role`, such as `eos_token`.
    pub(super) fn role(&self, role: &str) -> Result<String> {
        let special =
            self.names.iter().zip(&self.roles).find(|(name, _)| **name == role).and_then(|(_, it)| it.as_ref());
        special.map(|it| it.text().to_string()).ok_or_else(|| Error::Tokenizer(format!("`{role}` is null")))
    }

    /// The texts of CLIP's four roles.
    pub(super) fn role_tokens(&self) -> Result<RoleTokens> {
        let [bos, eos, unk, pad] = ["bos_token", "eos_token", "unk_token", "pad_token"].map(|role| self.role(role));
        Ok(RoleTokens { bos: bos?, eos: eos?, unk: unk?, pad: pad? })
    }

    /// Has `tokens` be those without a role, unless a file lists them.
    pub(super) fn extra_unless_listed(&mut self, tokens: impl IntoIterator<Item = AddedToken>) {
        self.extra.get_or_insert_with(|| tokens.into_iter().map(Special::Token).collect());
    }

    /// The tokens to register with the tokenizer, in order: those with ids, those of the roles, the extra ones. Where
    /// two are the same text, the later one's properties count.
    pub(super) fn to_register(&self) -> Vec<AddedToken> {
        let is_numbered = |special: &Special| self.numbered.iter().any(|token| token.content == special.text());
        let mut others: Vec<Special> = Vec::new();
        for special in self.roles.iter().flatten().chain(self.extra.iter().flatten()) {
            if !is_numbered(special) && !others.contains(special) {
                others.push(special.clone());
            }
        }
        let all = self.numbered.iter().cloned().chain(others.into_iter().map(Special::into_token));
        all.map(|token| AddedToken { special: token.special || self.has_role(&token.content), ..token }).collect()
    }
}

/// The tokens of `added_tokens_decoder`, with their ids.
fn in_decoder(decoder: &ConfigMap) -> Result<Vec<(u64, AddedToken)>> {
    let token = |(id, token): (&String, &Value)| {
        let token = token.as_object().and_then(|token| added_token(token, false));
        let numbered = id.parse().ok().zip(token);
        numbered.ok_or_else(|| Error::Tokenizer(format!("tokenizer_config.json: token {id} is malformed")))
    };
    decoder.iter().map(token).collect()
}

/// The tokens of `added_tokens.json` and of `tokenizer.json`, with their ids; the latter come first in doubt.
fn in_older_files(
    added: &ConfigMap,
    serialized: &[ConfigMap],
    has_role: impl Fn(&str) -> bool,
) -> Result<Vec<(u64, AddedToken)>> {
    let mut numbered = Vec::new();
    for (text, id) in added {
        let id = id.as_u64();
        let id = id.ok_or_else(|| Error::Tokenizer(format!("added_tokens.json: the id of `{text}` is no number")))?;
        numbered.push((id, AddedToken::from(text, has_role(text))));
    }
    for token in serialized {
        let (id, token) = (token.get("id").and_then(Value::as_u64), added_token(token, false));
        numbered.retain(|(taken, _)| Some(*taken) != id);
        let token = id.zip(token);
        numbered.push(token.ok_or_else(|| Error::Tokenizer("tokenizer.json: an added token is malformed".into()))?);
    }
    Ok(numbered)
}
