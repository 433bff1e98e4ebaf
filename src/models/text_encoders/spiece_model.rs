//! `spiece.model`: what SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) writes, a protocol buffer.
//!
//! Mirrors what `SentencePieceExtractor` of `transformers/convert_slow_tokenizer.py` at 5.23 reads; the fields are those of
//! `sentencepiece_model.proto`.

use crate::error::{Error, Result};
use std::path::Path;

/// The type of pieces that stand for no text, such as `</s>`.
const CONTROL: u64 = 3;
/// The type of pieces that are found before anything else.
const USER_DEFINED: u64 = 4;
/// The only kind of model that is read.
const UNIGRAM: u64 = 1;

/// A piece of the vocabulary; its place is its id.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// The logarithm of its probability.
    pub(super) score: f32,
    kind: u64,
}

impl Piece {
    pub(super) fn is_control(&self) -> bool {
        self.kind == CONTROL
    }

    pub(super) fn is_user_defined(&self) -> bool {
        self.kind == USER_DEFINED
    }
}

/// The parts of the file that a tokenizer is made of.
#[derive(Debug, PartialEq)]
pub(super) struct SpieceModel {
    pub(super) pieces: Vec<Piece>,
    /// How text is normalised, as SentencePiece compiled it; none if it is not.
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
}

impl SpieceModel {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Tokenizer`] if it is broken, [`Error::Unsupported`] if it is no Unigram
    /// model.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::parse(&bytes).map_err(|error| match error {
            Error::Tokenizer(text) => Error::Tokenizer(format!("{}: {text}", path.display())),
            other => other.in_file(path),
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (mut pieces, mut precompiled_charsmap, mut model_type) = (vec![], None, UNIGRAM);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => pieces.push(parse_piece(piece)?),
                (2, Value::Bytes(trainer_spec)) => {
                    for field in Fields(trainer_spec) {
                        if let (3, Value::Number(number)) = field? {
                            model_type = number;
                        }
                    }
                }
                (3, Value::Bytes(normalizer_spec)) => {
                    for field in Fields(normalizer_spec) {
                        if let (2, Value::Bytes(charsmap)) = field? {
                            precompiled_charsmap = Some(charsmap.to_vec()).filter(|charsmap| !charsmap.is_empty());
                        }
                    }
                }
                _ => (),
            }
        }
        if model_type != UNIGRAM {
            let text = format!("the model is of SentencePiece's type {model_type}: supported is {UNIGRAM}, Unigram");
            return Err(Error::Unsupported(text));
        }
        if pieces.is_empty() {
            return Err(Error::Tokenizer("there are no pieces".into()));
        }
        Ok(Self { pieces, precompiled_charsmap })
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                let text =
                    std::str::from_utf8(text).map_err(|error| broken(&format!("a piece is no text: {error}")))?;
                piece.text = text.into();
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(kind)) => piece.kind = kind,
            _ => (),
        }
    }
    Ok(piece)
}

fn broken(why: &str) -> Error {
    Error::Tokenizer(format!("this is no SentencePiece model: {why}"))
}

/// A field's value, by its wire type.
enum Value<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message: number and value.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| broken("it ends within a field"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(broken("a number has more than 64 bits"))
    }

    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Other
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| broken("it ends within a field"))?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?.try_into().map_err(|_| broken("it ends within a field"))?;
                Value::Fixed32(u32::from_le_bytes(bytes))
            }
            other => return Err(broken(&format!("there is no wire type {other}"))),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_text_score_and_type() {
        let score = (-1.5f32).to_le_bytes();
        let mut piece = vec![0x0a, 3, 0xe2, 0x96, 0x81, 0x15];
        piece.extend(score);
        piece.extend([0x18, 4]);
        let model = [&[0x0a, piece.len() as u8][..], &piece, &[0x1a, 3, 0x12, 1, 7]].concat();
        let model = SpieceModel::parse(&model).unwrap();
        assert_eq!(model.pieces, [Piece { text: "▁".into(), score: -1.5, kind: USER_DEFINED }]);
        assert_eq!(model.precompiled_charsmap, Some(vec![7]));
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_refused() {
        for bytes in [&[0x0a, 9, 1][..], &[0x0a], &[0xff; 11], &[0x0b], &[0x0a, 3, 0x0a, 1, 0xff], &[0x15, 1, 2], &[]] {
            assert!(matches!(SpieceModel::parse(bytes), Err(Error::Tokenizer(_))), "{bytes:?}");
        }
        let bpe = [0x0a, 3, 0x0a, 1, b'a', 0x12, 2, 0x18, 2];
        assert!(matches!(SpieceModel::parse(&bpe), Err(Error::Unsupported(text)) if text.contains("type 2")));
    }
}
