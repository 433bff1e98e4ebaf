//! How the weights of a group lie behind each other in one piece of memory.

use crate::error::Result;
use crate::hooks::residency::Weight;
use crate::torch::KindExt;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Where a weight may begin, in bytes. Matrix products are chosen by the alignment of their operands up to this one, and
/// another choice could round otherwise than with weights that have memory of their own.
const ALIGNMENT: usize = 256;

/// The places of a group's weights in one piece of memory.
#[derive(Debug)]
pub(super) struct Image {
    /// The length of the whole, at least 1.
    pub(super) bytes: usize,
    pub(super) parts: Vec<Part>,
}

/// One weight's place, and how it is to be read.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) offset: usize,
    bytes: usize,
    kind: Kind,
    size: Vec<i64>,
    stride: Vec<i64>,
    /// Where on the host the weight lay when its place was found.
    pub(super) address: usize,
    /// Whether that is in the file that the weight was left to.
    pub(super) in_file: bool,
}

impl Image {
    /// Of the weights as they wait now.
    pub(super) fn of(weights: &[Weight]) -> Result<Self> {
        let (mut end, mut parts) = (0, vec![]);
        for weight in weights {
            let waiting = weight.waiting();
            let offset = usize::next_multiple_of(end, ALIGNMENT);
            let bytes = waiting.numel() * waiting.f_kind()?.elt_size_in_bytes();
            parts.push(Part {
                offset,
                bytes,
                kind: waiting.f_kind()?,
                size: waiting.size(),
                stride: waiting.stride(),
                address: waiting.data_ptr() as usize,
                in_file: weight.is_in_file(&waiting)?,
            });
            end = offset + bytes;
        }
        Ok(Self { bytes: end.max(1).next_multiple_of(ALIGNMENT), parts })
    }

    /// How long its weights are for a model of dtype `kind`: those in fewer bits, and those that are no fractions, stay so.
    pub(super) fn bytes_as(&self, kind: Kind) -> usize {
        let bytes = |part: &Part| {
            let stored = part.kind.elt_size_in_bytes();
            let follows = stored > 1 && part.kind.is_floating_point();
            let bytes = part.bytes / stored * if follows { kind.elt_size_in_bytes() } else { stored };
            bytes.next_multiple_of(ALIGNMENT)
        };
        self.parts.iter().map(bytes).sum()
    }

    /// Whether part of it lies in files, which cannot be pinned.
    pub(super) fn is_in_file(&self) -> bool {
        self.parts.iter().any(|part| part.in_file)
    }

    /// The weights as views of `buffer`, bytes that hold them.
    pub(super) fn views(&self, buffer: &Tensor) -> Result<Vec<Tensor>> {
        let mut typed: Option<(Kind, Tensor)> = None;
        let mut views = vec![];
        for part in &self.parts {
            let whole = match &typed {
                Some((kind, whole)) if *kind == part.kind => whole.shallow_clone(),
                // A buffer is as long as an image or several, so its length is a multiple of every dtype's.
                _ => buffer.f_view_dtype(part.kind)?,
            };
            let (start, length) =
                (part.offset / part.kind.elt_size_in_bytes(), part.bytes / part.kind.elt_size_in_bytes());
            let own = whole.f_narrow(0, start as i64, length as i64)?;
            views.push(own.f_as_strided(&part.size, &part.stride, None)?);
            typed = Some((part.kind, whole));
        }
        Ok(views)
    }

    /// Writes the bytes `range` of the image to the beginning of `buffer`.
    pub(super) fn write(&self, weights: &[Weight], range: Range<usize>, buffer: &Tensor) -> Result<()> {
        for (weight, part) in weights.iter().zip(&self.parts) {
            let (start, end) = (range.start.max(part.offset), range.end.min(part.offset + part.bytes));
            if start < end {
                let length = (end - start) as i64;
                let waiting = weight.waiting();
                let bytes = waiting.f_as_strided([waiting.numel() as i64], [1], None)?.f_view_dtype(Kind::Uint8)?;
                let source = bytes.f_narrow(0, (start - part.offset) as i64, length)?;
                buffer.f_narrow(0, (start - range.start) as i64, length)?.f_copy_(&source)?;
            }
        }
        Ok(())
    }

    /// Whether the weights still wait where they did when the image was made.
    pub(super) fn holds(&self, weights: &[Weight]) -> Result<bool> {
        for (weight, part) in weights.iter().zip(&self.parts) {
            let waiting = weight.waiting();
            let same = waiting.data_ptr() as usize == part.address && waiting.f_kind()? == part.kind;
            if !same || waiting.size() != part.size || waiting.stride() != part.stride {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
