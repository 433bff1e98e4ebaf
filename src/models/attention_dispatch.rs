//! The names of the ways to compute attention.
//!
//! Mirrors `AttentionBackendName` of `diffusers/models/attention_dispatch.py` (0.42.1), of which libtorch has those that
//! begin with `native`.

use crate::error::{Error, Result};
use crate::torch::SDPBackend;
use std::str::FromStr;

/// Who computes attention: `AttentionBackendName`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionBackend {
    /// libtorch picks a kernel: `native`.
    #[default]
    Native,
    /// cuDNN's kernel: `_native_cudnn`.
    NativeCudnn,
    /// The memory-efficient kernel: `_native_efficient`.
    NativeEfficient,
    /// Flash attention: `_native_flash`.
    NativeFlash,
    /// Matrix products and a softmax: `_native_math`.
    NativeMath,
}

const NAMES: [(&str, AttentionBackend); 5] = [
    ("native", AttentionBackend::Native),
    ("_native_cudnn", AttentionBackend::NativeCudnn),
    ("_native_efficient", AttentionBackend::NativeEfficient),
    ("_native_flash", AttentionBackend::NativeFlash),
    ("_native_math", AttentionBackend::NativeMath),
];

/// What diffusers has and libtorch has not, and what it comes from.
const ELSEWHERE: [(&str, &str); 22] = [
    ("flash", "the Python package flash-attn"),
    ("flash_hub", "a kernel of the Hub"),
    ("flash_varlen", "the Python package flash-attn"),
    ("flash_varlen_hub", "a kernel of the Hub"),
    ("flash_4_hub", "a kernel of the Hub"),
    ("_flash_3", "the Python package flash-attn 3"),
    ("_flash_varlen_3", "the Python package flash-attn 3"),
    ("_flash_3_hub", "a kernel of the Hub"),
    ("_flash_3_varlen_hub", "a kernel of the Hub"),
    ("aiter_fa2_hub", "a kernel of the Hub"),
    ("flex", "torch.compile"),
    ("_native_npu", "torch_npu"),
    ("_native_xla", "torch_xla"),
    ("sage", "the Python package sageattention"),
    ("sage_hub", "a kernel of the Hub"),
    ("sage_blackwell_hub", "a kernel of the Hub"),
    ("sage_varlen", "the Python package sageattention"),
    ("_sage_qk_int8_pv_fp8_cuda", "the Python package sageattention"),
    ("_sage_qk_int8_pv_fp8_cuda_sm90", "the Python package sageattention"),
    ("_sage_qk_int8_pv_fp16_cuda", "the Python package sageattention"),
    ("_sage_qk_int8_pv_fp16_triton", "the Python package sageattention"),
    ("xformers", "the Python package xformers"),
];

impl AttentionBackend {
    /// The one kernel that is used; `None` where libtorch picks.
    #[must_use]
    pub fn kernel(self) -> Option<SDPBackend> {
        match self {
            Self::Native => None,
            Self::NativeCudnn => Some(SDPBackend::CudnnAttention),
            Self::NativeEfficient => Some(SDPBackend::EfficientAttention),
            Self::NativeFlash => Some(SDPBackend::FlashAttention),
            Self::NativeMath => Some(SDPBackend::Math),
        }
    }

    /// diffusers' name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, backend)| *backend == self).map_or("native", |(name, _)| name)
    }

    pub(crate) fn code(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_code(code: i64) -> Self {
        NAMES.iter().map(|(_, backend)| *backend).find(|backend| backend.code() == code).unwrap_or_default()
    }
}

impl FromStr for AttentionBackend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let name = name.to_lowercase();
        if let Some((_, backend)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(*backend);
        }
        let names = NAMES.map(|(name, _)| name).join(", ");
        Err(match ELSEWHERE.iter().find(|(known, _)| *known == name) {
            Some((_, source)) => Error::Unsupported(format!(
                "attention backend `{name}` comes from {source}, which libtorch does not have: use one of {names}"
            )),
            None => Error::Argument(format!("unknown attention backend `{name}`: use one of {names}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_diffusers() {
        for (name, backend) in NAMES {
            assert_eq!((name.parse::<AttentionBackend>().unwrap(), backend.name()), (backend, name));
            assert_eq!(AttentionBackend::from_code(backend.code()), backend);
        }
        let error = "sage".parse::<AttentionBackend>().unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)) && error.to_string().contains("sageattention"), "{error}");
        assert!(matches!("none".parse::<AttentionBackend>(), Err(Error::Argument(_))));
    }
}
