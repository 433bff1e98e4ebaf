//! Sequences of a fixed length: what begins and ends them, what is cut off, and what fills them up.

use super::clip_tokenizer::TextInputs;
use crate::error::{Error, Result};
use tch::Tensor;

/// Sequences longer than this are taken for a mistake: a missing `model_max_length` reads as 10^30.
const LONGEST: usize = 1 << 20;

/// How the ids of a text become those of a sequence.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    /// The ids that begin a sequence.
    pub(super) before: Vec<i64>,
    /// The id that ends it.
    pub(super) after: i64,
    /// The id that fills it up.
    pub(super) pad: i64,
    pub(super) pad_left: bool,
    pub(super) truncate_left: bool,
}

impl Framing {
    /// How many ids of a sequence are not the text's.
    fn special(&self) -> usize {
        self.before.len() + 1
    }

    pub(super) fn check_length(&self, max_length: usize) -> Result<()> {
        let special = self.special();
        if (special..=LONGEST).contains(&max_length) {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "`max_length` is {max_length}: it can be {special}, for the special tokens alone, to {LONGEST}"
        )))
    }

    pub(super) fn framed(&self, content: &[i64]) -> Vec<i64> {
        [&self.before, content, &[self.after]].concat()
    }

    pub(super) fn truncated(&self, content: &[i64], max_length: usize) -> Vec<i64> {
        let excess = content.len().saturating_sub(max_length - self.special());
        let kept = if self.truncate_left { &content[excess..] } else { &content[..content.len() - excess] };
        self.framed(kept)
    }

    pub(super) fn padded(&self, ids: Vec<i64>, length: usize) -> Vec<i64> {
        self.filled(ids, length, self.pad)
    }

    /// `values` filled up to `length` with `fill`.
    fn filled(&self, mut values: Vec<i64>, length: usize, fill: i64) -> Vec<i64> {
        let missing = length.saturating_sub(values.len());
        if self.pad_left {
            values.splice(..0, std::iter::repeat_n(fill, missing));
        } else {
            values.resize(values.len() + missing, fill);
        }
        values
    }

    /// The sequences of several texts as one batch, and, by `decode`, the text that was cut off.
    pub(super) fn batch(
        &self,
        contents: &[Vec<i64>],
        max_length: usize,
        decode: impl Fn(&[i64]) -> Result<String>,
    ) -> Result<TextInputs> {
        self.check_length(max_length)?;
        if contents.is_empty() {
            return Err(Error::Argument("there are no prompts to encode".into()));
        }
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for content in contents {
            let tokens = self.truncated(content, max_length);
            mask.extend(self.filled(vec![1; tokens.len()], max_length, 0));
            ids.extend(self.padded(tokens, max_length));
        }
        let tensor = |values: &[i64]| Ok::<_, Error>(Tensor::f_from_slice(values)?.f_view([-1, max_length as i64])?);
        Ok(TextInputs {
            input_ids: tensor(&ids)?,
            attention_mask: tensor(&mask)?,
            removed_text: self.removed_text(contents, max_length, decode)?,
        })
    }

    /// What diffusers decodes for its warning: all prompts padded to the longest, without the first `max_length` - 1
    /// ids and without the last.
    fn removed_text(
        &self,
        contents: &[Vec<i64>],
        max_length: usize,
        decode: impl Fn(&[i64]) -> Result<String>,
    ) -> Result<Option<Vec<String>>> {
        let longest = contents.iter().map(Vec::len).max().unwrap_or_default() + self.special();
        if longest <= max_length {
            return Ok(None);
        }
        let removed =
            |content: &Vec<i64>| decode(&self.padded(self.framed(content), longest)[max_length - 1..longest - 1]);
        contents.iter().map(removed).collect::<Result<_>>().map(Some)
    }
}
