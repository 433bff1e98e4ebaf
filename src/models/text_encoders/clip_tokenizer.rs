//! CLIP's tokenizer: byte-level byte pair encoding of lower-case text.
//!
//! Mirrors `CLIPTokenizer` of `transformers/models/clip/tokenization_clip.py` at 5.23 and the `tokenizers` pipeline it
//! builds. Radford et al. 2021, arXiv:2103.00020; Sennrich et al. 2016, arXiv:1508.07909.

use super::clip_special_tokens::RoleTokens;
use super::clip_tokenizer_files::{TokenizerFiles, copy_files};
use super::framing::Framing;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tch::Tensor;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

/// What a word ends with in the vocabulary.
const END_OF_WORD: &str = "</w>";

/// What counts as one word: the special tokens, English endings, letters, one digit, or anything else but spaces.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The files that a tokenizer may be read from.
const FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Turns prompts into the ids that [`CLIPTextModel`](super::CLIPTextModel) takes, and back.
///
/// Reading the files is done once; encoding only reads the tokenizer, so threads may share it.
#[derive(Debug)]
pub struct CLIPTokenizer {
    folder: PathBuf,
    tokenizer: Tokenizer,
    roles: RoleTokens,
    bos_token_id: i64,
    framing: Framing,
    model_max_length: Option<usize>,
}

/// A batch of prompts as ids, and what did not fit.
#[derive(Debug)]
pub struct TextInputs {
    /// The ids, int64 `[batch, max_length]`, on the CPU.
    pub input_ids: Tensor,
    /// 1 for a token and 0 for padding, int64 `[batch, max_length]`, on the CPU.
    pub attention_mask: Tensor,
    /// For each prompt the text that was cut off, as diffusers' warning quotes it; `None` if all prompts fit.
    ///
    /// diffusers pads the prompts of a batch to the longest before it decodes them, so that a shorter prompt's text is
    /// padding tokens.
    pub removed_text: Option<Vec<String>>,
}

impl CLIPTokenizer {
    /// Reads the tokenizer in `folder`: `tokenizer.json` if it is there, else `vocab.json` and `merges.txt`; beside
    /// them `tokenizer_config.json` and, from older releases, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Config`] if it is no such JSON, [`Error::Tokenizer`] if the
    /// files contradict each other.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let named = |error| match error {
            Error::Tokenizer(text) => Error::Tokenizer(format!("{}: {text}", folder.display())),
            other => other,
        };
        TokenizerFiles::read(folder).and_then(|files| Self::new(folder, files)).map_err(named)
    }

    /// Copies the files it was read from to `folder`, as they are.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read or written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        copy_files(&self.folder, folder.as_ref(), &FILES)
    }

    fn new(folder: &Path, files: TokenizerFiles) -> Result<Self> {
        let TokenizerFiles { vocab, merges, roles, added_tokens, model_max_length, .. } = files;
        // The builder copies each merged token into a buffer as long as the longest token, and would panic.
        let longest = vocab.keys().map(String::len).max().unwrap_or_default();
        if let Some((a, b)) = merges.iter().find(|(a, b)| a.len() + b.len() > longest) {
            return Err(Error::Tokenizer(format!("the merge of `{a}` and `{b}` is not in the vocabulary")));
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(END_OF_WORD.into())
            .unk_token(roles.unk.clone())
            .build()
            .map_err(tokenizer_error)?;
        let mut tokenizer = Tokenizer::new(bpe);
        let one_space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(tokenizer_error)?;
        let normalizers = Normalizers::new(vec![NFC.into(), one_space.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizers)).map_err(tokenizer_error)?;
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)
            .map_err(tokenizer_error)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.add_tokens(added_tokens).map_err(tokenizer_error)?;
        tokenizer.set_encode_special_tokens(files.split_special_tokens);

        let id = |text: &str| {
            let id = tokenizer.token_to_id(text);
            id.map(i64::from).ok_or_else(|| Error::Tokenizer(format!("`{text}` is not in the vocabulary")))
        };
        let (bos_token_id, after, pad) = (id(&roles.bos)?, id(&roles.eos)?, id(&roles.pad)?);
        let TokenizerFiles { pad_left, truncate_left, .. } = files;
        let framing = Framing { before: vec![bos_token_id], after, pad, pad_left, truncate_left };
        Ok(Self { folder: folder.to_path_buf(), tokenizer, roles, bos_token_id, framing, model_max_length })
    }

    /// The longest sequence of the model this tokenizer is for, in tokens and with the two special ones: 77 for
    /// CLIP's own.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if no file said.
    pub fn model_max_length(&self) -> Result<usize> {
        self.model_max_length.ok_or_else(|| Error::Tokenizer("tokenizer_config.json says no `model_max_length`".into()))
    }

    /// The token that begins a sequence, such as `<|startoftext|>`.
    #[must_use]
    pub fn bos_token(&self) -> &str {
        &self.roles.bos
    }

    /// The token that ends a sequence, such as `<|endoftext|>`.
    #[must_use]
    pub fn eos_token(&self) -> &str {
        &self.roles.eos
    }

    /// The token that fills up a short sequence: `<|endoftext|>`, or `!` in SDXL's `tokenizer_2`.
    #[must_use]
    pub fn pad_token(&self) -> &str {
        &self.roles.pad
    }

    /// The token for what the vocabulary lacks.
    #[must_use]
    pub fn unk_token(&self) -> &str {
        &self.roles.unk
    }

    /// The id of [`CLIPTokenizer::bos_token`].
    #[must_use]
    pub fn bos_token_id(&self) -> i64 {
        self.bos_token_id
    }

    /// The id of [`CLIPTokenizer::eos_token`].
    #[must_use]
    pub fn eos_token_id(&self) -> i64 {
        self.framing.after
    }

    /// The id of [`CLIPTokenizer::pad_token`].
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

    /// The ids of `text` between the two special tokens, as many as there are: `tokenizer(text).input_ids`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a character is in no token and `unk_token` is in no vocabulary.
    pub fn encode_untruncated(&self, text: &str) -> Result<Vec<i64>> {
        Ok(self.framing.framed(&self.content(text)?))
    }

    /// Exactly `max_length` ids of `text`, cut or padded:
    /// `tokenizer(text, padding="max_length", max_length=max_length, truncation=True).input_ids`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `max_length` has no room for the two special tokens; else as
    /// [`CLIPTokenizer::encode_untruncated`].
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<i64>> {
        self.framing.check_length(max_length)?;
        Ok(self.framing.padded(self.framing.truncated(&self.content(text)?, max_length), max_length))
    }

    /// [`CLIPTokenizer::encode`] of each prompt as one tensor, with the text that was cut off.
    ///
    /// # Errors
    /// As [`CLIPTokenizer::encode`], and [`Error::Argument`] for no prompts at all.
    pub fn encode_batch(&self, prompts: &[impl AsRef<str>], max_length: usize) -> Result<TextInputs> {
        let contents = prompts.iter().map(|prompt| self.content(prompt.as_ref())).collect::<Result<Vec<_>>>()?;
        self.framing.batch(&contents, max_length, |ids| self.decode(ids))
    }

    /// The text of `ids`, special tokens included: `tokenizer.decode(ids)`. Ids that are in no vocabulary are left out.
    ///
    /// # Errors
    /// [`Error::Argument`] for a negative id.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let text = self.tokenizer.decode(&unsigned(ids)?, false).map_err(tokenizer_error)?.replace(END_OF_WORD, " ");
        Ok(text.trim_matches(is_python_space).into())
    }

    /// The ids of `text` alone.
    fn content(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }
}

/// Ids as the `tokenizers` crate has them.
pub(super) fn unsigned(ids: &[i64]) -> Result<Vec<u32>> {
    let unsigned = |id: &i64| u32::try_from(*id).map_err(|_| Error::Argument(format!("{id} is no token's id")));
    ids.iter().map(unsigned).collect()
}

pub(super) fn tokenizer_error(error: impl std::fmt::Display) -> Error {
    Error::Tokenizer(error.to_string())
}

/// What Python's `str.strip` takes off: four separators more than Unicode's white space.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}
