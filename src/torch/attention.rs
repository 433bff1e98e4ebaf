//! Which of libtorch's kernels compute attention.
//!
//! Mirrors `torch.nn.attention.sdpa_kernel` and `SDPBackend` of torch 2.11. The choice holds for the whole process, as there.

use super::ffi::switches as ffi;
use super::switches::Guard;
use crate::error::{Error, Result};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// A kernel of scaled dot-product attention: `torch.nn.attention.SDPBackend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SDPBackend {
    /// Matrix products and a softmax: everywhere, for everything.
    Math,
    /// Flash attention (Dao et al. 2022, arXiv:2205.14135): on the CPU, and on CUDA in half precision without a mask.
    FlashAttention,
    /// Memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682): on CUDA, masks and float32 too.
    EfficientAttention,
    /// cuDNN's, on CUDA in half precision.
    CudnnAttention,
}

const NAMES: [(&str, SDPBackend); 4] = [
    ("math", SDPBackend::Math),
    ("flash_attention", SDPBackend::FlashAttention),
    ("efficient_attention", SDPBackend::EfficientAttention),
    ("cudnn_attention", SDPBackend::CudnnAttention),
];

impl SDPBackend {
    /// All that can be chosen from.
    pub const ALL: [Self; 4] = [Self::Math, Self::FlashAttention, Self::EfficientAttention, Self::CudnnAttention];

    /// `at::SDPBackend`.
    fn number(self) -> i32 {
        self as i32
    }

    /// Whether libtorch may use it now.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn is_enabled(self) -> Result<bool> {
        ffi::sdp(self.number())
    }
}

impl FromStr for SDPBackend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(known, _)| *known == name.to_lowercase()).map(|(_, backend)| *backend);
        known.ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            Error::Argument(format!("unknown attention kernel `{name}`: use one of {names}"))
        })
    }
}

/// The kernels that libtorch may use, the one it tries first in front.
///
/// # Errors
/// Only if libtorch itself fails.
pub fn sdpa_kernels() -> Result<Vec<SDPBackend>> {
    let known = |number: i64| SDPBackend::ALL.into_iter().find(|backend| i64::from(backend.number()) == number);
    let mut enabled = vec![];
    for backend in ffi::sdp_order()?.into_iter().filter_map(known) {
        if backend.is_enabled()? {
            enabled.push(backend);
        }
    }
    Ok(enabled)
}

/// Attention by one of `backends` alone until the guard is dropped: `torch.nn.attention.sdpa_kernel`.
///
/// With `set_priority` the first of them that can do it does; else libtorch's own order decides.
/// [`scaled_dot_product_attention`] says what is missing where none can.
///
/// # Examples
/// ```
/// use tch_diffusers::torch::{SDPBackend, sdpa_kernel, sdpa_kernels};
/// let _guard = sdpa_kernel(&[SDPBackend::CudnnAttention, SDPBackend::FlashAttention], true)?;
/// assert_eq!(sdpa_kernels()?, [SDPBackend::CudnnAttention, SDPBackend::FlashAttention]);
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
///
/// # Errors
/// [`Error::Argument`] if there is none to choose from.
// Differs from torch: there, the order of before comes back only as far as those enabled go, and an empty list is taken.
pub fn sdpa_kernel(backends: &[SDPBackend], set_priority: bool) -> Result<Guard> {
    if backends.is_empty() {
        return Err(Error::Argument("no attention kernel to choose from".into()));
    }
    let before = State::now()?;
    let mut order = vec![];
    let first = backends.iter().filter(|_| set_priority).map(|backend| i64::from(backend.number()));
    for number in first.chain(before.order) {
        if !order.contains(&number) {
            order.push(number);
        }
    }
    let mut enabled = [false; ffi::BACKENDS];
    for (number, enabled) in (0..).zip(&mut enabled) {
        *enabled = backends.iter().any(|backend| backend.number() == number);
    }
    State { enabled, order: order.try_into().unwrap_or(before.order) }.set()?;
    Ok(Guard::new(move || before.set()))
}

/// One attention by `backend` alone, which leaves the choice for all others as it was. Where libtorch has no other way than to
/// change that choice for a moment, which other threads then see, such attentions wait for each other.
///
/// # Shapes
/// As [`scaled_dot_product_attention`].
///
/// # Errors
/// As [`scaled_dot_product_attention`].
pub fn attention_by(
    backend: SDPBackend,
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    attention_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let place = query.device();
    match backend {
        // Another thread's attention under way must not see the choice change: what can be had without it is.
        SDPBackend::Math if attention_mask.is_none_or(|mask| mask.kind() != Kind::Bool) => {
            let mask = attention_mask;
            let (attended, _) = Tensor::f_internal_scaled_dot_product_attention_math(
                query, key, value, mask, 0.0, false, None, None, false,
            )?;
            return Ok(attended);
        }
        SDPBackend::EfficientAttention | SDPBackend::CudnnAttention if !place.is_cuda() => {
            return Err(none_of(&[backend], place, "CUDA alone has them"));
        }
        _ => {
            let choice =
                Tensor::f_internal_fused_sdp_choice(query, key, value, attention_mask, 0.0, false, None, false)?;
            if choice == i64::from(backend.number()) {
                return scaled_dot_product_attention(query, key, value, attention_mask);
            }
        }
    }
    // Two threads that made and unmade the choice in turns would leave one half-made.
    static CHOICE: Mutex<()> = Mutex::new(());
    let _alone = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let _guard = sdpa_kernel(&[backend], false)?;
    scaled_dot_product_attention(query, key, value, attention_mask)
}

fn none_of(kernels: &[SDPBackend], place: Device, reasons: &str) -> Error {
    Error::Unsupported(format!("none of the attention kernels {kernels:?} can do this on {place:?}: {reasons}"))
}

/// What libtorch has written down about its kernels.
#[derive(Clone, Copy)]
struct State {
    enabled: [bool; ffi::BACKENDS],
    order: [i64; ffi::BACKENDS],
}

impl State {
    fn now() -> Result<Self> {
        let mut enabled = [false; ffi::BACKENDS];
        for (number, enabled) in (0..).zip(&mut enabled) {
            *enabled = ffi::sdp(number)?;
        }
        Ok(Self { enabled, order: ffi::sdp_order()? })
    }

    fn set(&self) -> Result<()> {
        (0..).zip(self.enabled).try_for_each(|(number, enabled)| ffi::set_sdp(number, enabled))?;
        ffi::set_sdp_order(&self.order)
    }
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v` for each head, by a kernel that may be used; where none can, the error says
/// what each of them lacks.
///
/// # Shapes
/// `query` is `[batch, heads, queries, head_dim]`, and the same comes out; `key` and `value` are
/// `[batch, heads, keys, head_dim]`; `attention_mask` broadcasts to `[batch, heads, queries, keys]`.
///
/// # Errors
/// [`Error::Unsupported`] if no kernel that may be used can do it, with libtorch's reasons; [`Error::Torch`] if the shapes do
/// not fit.
pub fn scaled_dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    attention_mask: Option<&Tensor>,
) -> Result<Tensor> {
    ffi::attention(query, key, value, attention_mask).map_err(|error| match error {
        Error::Torch(reasons) if reasons.contains("No available kernel") || reasons.contains("No viable backend") => {
            let enabled = sdpa_kernels().unwrap_or_default();
            let place = query.device();
            let cuda =
                |kernel: &SDPBackend| matches!(kernel, SDPBackend::EfficientAttention | SDPBackend::CudnnAttention);
            let reasons = match !place.is_cuda() && enabled.iter().all(cuda) {
                true => "CUDA alone has them".to_string(),
                false => reasons,
            };
            none_of(&enabled, place, &reasons)
        }
        other => other,
    })
}
