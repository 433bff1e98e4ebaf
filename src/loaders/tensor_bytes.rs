//! Tensors as the safetensors crate takes them to be written.

use crate::error::{Error, Result};
use crate::torch::KindExt;
use safetensors::Dtype;
use std::borrow::Cow;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// A tensor as the safetensors crate wants to see it. It is fetched, cast and copied while it is written, so that one at
/// a time takes memory.
pub(super) struct TensorBytes<'a> {
    pub(super) key: &'a str,
    pub(super) tensor: &'a Tensor,
    kind: Kind,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its length in the file.
    pub(super) bytes: usize,
    /// What went wrong while it was written: the crate's trait has no way to say so.
    pub(super) failure: RefCell<Option<Error>>,
}

impl<'a> TensorBytes<'a> {
    /// `tensor` under its key; a floating-point one in dtype `cast`, if one is given.
    pub(super) fn new(key: &'a str, tensor: &'a Tensor, cast: Option<Kind>) -> Result<Self> {
        let stored = tensor.f_kind()?;
        let kind = cast.filter(|_| stored.is_floating_point()).unwrap_or(stored);
        let dtype = dtype_of(kind)
            .ok_or_else(|| Error::Unsupported(format!("`{key}`: safetensors cannot hold dtype {kind:?}")))?;
        let bytes = tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&side| side as usize).collect();
        Ok(Self { key, tensor, kind, dtype, shape, bytes, failure: RefCell::default() })
    }

    fn copy_to(&self, bytes: &mut [u8]) -> Result<()> {
        let tensor = self.tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(self.kind)?.f_contiguous()?;
        Ok(tensor.f_copy_data_u8(bytes, tensor.numel())?)
    }
}

impl safetensors::View for &TensorBytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.bytes];
        if let Err(error) = self.copy_to(&mut bytes) {
            self.failure.replace(Some(error.at(self.key)));
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        Kind::Float8e5m2 => Dtype::F8_E5M2,
        _ => return None,
    })
}
