//! T5's tokenizer: a Unigram model over words.
//!
//! Mirrors `T5Tokenizer` of `transformers/models/t5/tokenization_t5.py` at 5.23 and the `tokenizers` pipeline it builds, from
//! `tokenizer.json` or from SentencePiece's `spiece.model`. Kudo 2018, arXiv:1804.10959.

use super::charsmap::charsmap;
use super::clip_special_tokens::{SpecialTokens, T5_ROLES};
use super::clip_tokenizer::{TextInputs, tokenizer_error, unsigned};
use super::clip_tokenizer_files::{Files, copy_files, is_left, model_max_length};
use super::framing::Framing;
use super::spiece_model::SpieceModel;
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use base64::Engine;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::models::unigram::Unigram;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Tokenizer};

/// The place of the unknown token in every vocabulary of T5's.
const UNK_ID: usize = 2;

/// How many tokens stand for gaps in T5's training, unless `extra_ids` of `tokenizer_config.json` says otherwise.
const EXTRA_IDS: u64 = 100;

/// More than any model has: a hostile configuration asks for more tokens than the memory holds.
const MOST_EXTRA_IDS: u64 = 1_000_000;

/// What a space becomes.
const SPACE: char = '▁';

/// The files that a tokenizer may be read from.
const FILES: [&str; 5] =
    ["tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Turns prompts into the ids that [`T5EncoderModel`](super::T5EncoderModel) takes, and back.
///
/// Reading the files is done once; encoding only reads the tokenizer, so threads may share it.
#[derive(Debug)]
pub struct T5Tokenizer {
    folder: PathBuf,
    tokenizer: Tokenizer,
    framing: Framing,
    eos_token: String,
    pad_token: String,
    unk_token: String,
    model_max_length: Option<usize>,
}

/// The parts of `tokenizer.json` that count: transformers builds all else anew.
#[derive(Deserialize)]
struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    added_tokens: Vec<ConfigMap>,
}

#[derive(Deserialize)]
struct ModelJson {
    vocab: Vec<(String, f64)>,
}

/// What both layouts come to.
struct Source {
    vocab: Vec<(String, f64)>,
    charsmap: Option<Vec<u8>>,
    /// The added tokens with their ids.
    serialized: Vec<ConfigMap>,
    /// The tokens that are registered without a role, unless a file lists them.
    extra: Vec<AddedToken>,
}

impl Source {
    fn read(folder: &Path, config: &ConfigMap) -> Result<Self> {
        let extra_ids = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(EXTRA_IDS);
        if extra_ids > MOST_EXTRA_IDS {
            let text = format!("tokenizer_config.json: `extra_ids` is {extra_ids}: at most {MOST_EXTRA_IDS} are made");
            return Err(Error::Tokenizer(text));
        }
        let gap = |id: u64| format!("<extra_id_{id}>");
        let gaps = || (0..extra_ids).map(|id| AddedToken::from(gap(id), true));
        if let Some(whole) = folder.optional::<TokenizerJson>("tokenizer.json")? {
            let charsmap = charsmap_of(&whole.normalizer)?;
            let TokenizerJson { model, added_tokens: serialized, .. } = whole;
            return Ok(Self { vocab: model.vocab, charsmap, serialized, extra: gaps().collect() });
        }
        let SpieceModel { pieces, precompiled_charsmap: charsmap } = SpieceModel::read(&folder.join("spiece.model"))?;
        let named = pieces.iter().filter(|piece| piece.is_control() || piece.is_user_defined());
        let named = named.map(|piece| AddedToken::from(&piece.text, piece.is_control()).normalized(false));
        let extra = named.chain(gaps()).collect();
        let vocab = pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score)));
        let vocab = vocab.chain((0..extra_ids).rev().map(|id| (gap(id), 0.0))).collect();
        Ok(Self { vocab, charsmap, serialized: vec![], extra })
    }
}

/// The compiled normalisation in `tokenizer.json`, alone or as one of several.
fn charsmap_of(normalizer: &Value) -> Result<Option<Vec<u8>>> {
    let several = normalizer.get("normalizers").and_then(Value::as_array);
    let all = several.map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    let precompiled = all.iter().filter(|one| one.get("type").and_then(Value::as_str) == Some("Precompiled"));
    let Some(text) = precompiled.filter_map(|one| one.get("precompiled_charsmap")?.as_str()).next() else {
        return Ok(None);
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map(Some).map_err(|error| Error::Tokenizer(format!("tokenizer.json: `precompiled_charsmap`: {error}")))
}

impl T5Tokenizer {
    /// transformers' name of the class.
    pub const CLASS_NAME: &'static str = "T5Tokenizer";

    /// Reads the tokenizer in `folder`: `tokenizer.json` if it is there, else `spiece.model`; beside them
    /// `tokenizer_config.json` and, from older releases, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Config`] if it is no such JSON, [`Error::Tokenizer`] if a file is
    /// broken or the files contradict each other, [`Error::Unsupported`] for a SentencePiece model that is no Unigram model.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let named = |error| match error {
            Error::Tokenizer(text) => Error::Tokenizer(format!("{}: {text}", folder.display())),
            other => other,
        };
        Self::read(folder).map_err(named)
    }

    fn read(folder: &Path) -> Result<Self> {
        let config: ConfigMap = folder.optional("tokenizer_config.json")?.unwrap_or_default();
        let source = Source::read(folder, &config)?;
        let mut specials = SpecialTokens::read(folder, &config, &source.serialized, &T5_ROLES)?;
        specials.extra_unless_listed(source.extra);
        let unigram = Unigram::from(source.vocab, Some(UNK_ID), false).map_err(tokenizer_error)?;
        let mut tokenizer = Tokenizer::new(unigram);
        if let Some(bytes) = source.charsmap {
            tokenizer.with_normalizer(Some(charsmap(&bytes)?)).map_err(tokenizer_error)?;
        }
        let metaspace = Metaspace::new(SPACE, PrependScheme::Always, true);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace.clone().into()])));
        tokenizer.with_decoder(Some(metaspace));
        tokenizer.add_tokens(specials.to_register()).map_err(tokenizer_error)?;
        let split = config.get("split_special_tokens").and_then(Value::as_bool);
        tokenizer.set_encode_special_tokens(split.unwrap_or(false));

        let (eos_token, pad_token) = (specials.role("eos_token")?, specials.role("pad_token")?);
        let id = |text: &str| {
            let id = tokenizer.token_to_id(text).map(i64::from);
            id.ok_or_else(|| Error::Tokenizer(format!("`{text}` is not in the vocabulary")))
        };
        let framing = Framing {
            before: vec![],
            after: id(&eos_token)?,
            pad: id(&pad_token)?,
            pad_left: is_left(&config, "padding_side")?,
            truncate_left: is_left(&config, "truncation_side")?,
        };
        let (unk_token, model_max_length) = (specials.role("unk_token")?, model_max_length(&config));
        let folder = folder.to_path_buf();
        Ok(Self { folder, tokenizer, framing, eos_token, pad_token, unk_token, model_max_length })
    }

    /// Copies the files it was read from to `folder`, as they are.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read or written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        copy_files(&self.folder, folder.as_ref(), &FILES)
    }

    /// The longest sequence the tokenizer was made for, in tokens and with the last one, 512 for T5's own; none if no file
    /// says. Nothing is cut to it.
    #[must_use]
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// The token that ends a sequence, such as `</s>`.
    #[must_use]
    pub fn eos_token(&self) -> &str {
        &self.eos_token
    }

    /// The token that fills up a short sequence, such as `<pad>`.
    #[must_use]
    pub fn pad_token(&self) -> &str {
        &self.pad_token
    }

    /// The token for what the vocabulary lacks.
    #[must_use]
    pub fn unk_token(&self) -> &str {
        &self.unk_token
    }

    /// The id of [`T5Tokenizer::eos_token`].
    #[must_use]
    pub fn eos_token_id(&self) -> i64 {
        self.framing.after
    }

    /// The id of [`T5Tokenizer::pad_token`].
    #[must_use]
    pub fn pad_token_id(&self) -> i64 {
        self.framing.pad
    }

    /// The number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token, spelled as in the vocabulary.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// The ids of `text` before the one that ends a sequence, as many as there are: `tokenizer(text).input_ids`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the text cannot be tokenized.
    pub fn encode_untruncated(&self, text: &str) -> Result<Vec<i64>> {
        Ok(self.framing.framed(&self.content(text)?))
    }

    /// Exactly `max_length` ids of `text`, cut or padded:
    /// `tokenizer(text, padding="max_length", max_length=max_length, truncation=True).input_ids`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `max_length` has no room for the last token; else as [`T5Tokenizer::encode_untruncated`].
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<i64>> {
        self.framing.check_length(max_length)?;
        Ok(self.framing.padded(self.framing.truncated(&self.content(text)?, max_length), max_length))
    }

    /// [`T5Tokenizer::encode`] of each prompt as one tensor, with the text that was cut off.
    ///
    /// # Errors
    /// As [`T5Tokenizer::encode`], and [`Error::Argument`] for no prompts at all.
    pub fn encode_batch(&self, prompts: &[impl AsRef<str>], max_length: usize) -> Result<TextInputs> {
        let contents = prompts.iter().map(|prompt| self.content(prompt.as_ref())).collect::<Result<Vec<_>>>()?;
        self.framing.batch(&contents, max_length, |ids| self.decode(ids))
    }

    /// The text of `ids`, special tokens included: `tokenizer.decode(ids)`. Ids that are in no vocabulary are left out.
    ///
    /// # Errors
    /// [`Error::Argument`] for a negative id.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        self.tokenizer.decode(&unsigned(ids)?, false).map_err(tokenizer_error)
    }

    /// The ids of `text` alone.
    fn content(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }
}
