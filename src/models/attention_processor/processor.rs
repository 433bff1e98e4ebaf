//! How attention is computed: all heads at once, in slices, or by the kernel that saves memory.
//!
//! Mirrors `AttnProcessor2_0`, `SlicedAttnProcessor` and `XFormersAttnProcessor` of
//! `diffusers/models/attention_processor.py` (0.42.1).

use crate::error::{Error, Result};
use crate::models::attention_dispatch::AttentionBackend;
use crate::nn::Node;
use crate::torch::{attention_by, baddbmm};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tch::{Kind, Tensor};

/// How many heads are computed at once; the heads of all items of the batch count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionSlicing {
    /// Half of each layer's heads: `"auto"`.
    #[default]
    Auto,
    /// One head: `"max"`, which takes the least memory.
    Max,
    /// This many heads, which may not be more than a layer has.
    Size(i64),
}

impl AttentionSlicing {
    /// The slice of a layer with this many heads.
    // Differs from diffusers: there, half of one head is none, and the forward divides by zero.
    fn size(self, heads: i64) -> i64 {
        match self {
            Self::Auto => (heads / 2).max(1),
            Self::Max => 1,
            Self::Size(size) => size,
        }
    }
}

impl FromStr for AttentionSlicing {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "max" => Ok(Self::Max),
            size => size.parse().map(Self::Size).map_err(|_| {
                Error::Argument(format!("unknown slice size `{size}`: use auto, max or a number of heads"))
            }),
        }
    }
}

/// How an attention computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionProcessor {
    /// All heads at once, by whatever kernel libtorch picks: `AttnProcessor2_0`.
    #[default]
    Default,
    /// So many heads after one another: `SlicedAttnProcessor`.
    Sliced(i64),
    /// All heads at once, by libtorch's memory-efficient kernel where the tensors are on CUDA, and as the default
    /// elsewhere: in the place of `XFormersAttnProcessor`.
    MemoryEfficient,
}

/// The processor of one attention, shared with whoever walks the tree.
#[derive(Debug)]
pub(crate) struct ProcessorSetting {
    pub(crate) heads: i64,
    /// Whether scores are computed in float32, which only slices look at: `upcast_attention`.
    pub(crate) upcast_attention: bool,
    /// Whether it can be sliced, which the VAE's cannot in diffusers either.
    pub(crate) sliceable: bool,
    /// The heads of a slice, or one of the constants below.
    code: AtomicI64,
    backend: AtomicI64,
    /// Whether queries, keys and values come from one product.
    fused: AtomicBool,
}

const DEFAULT: i64 = 0;
const MEMORY_EFFICIENT: i64 = -1;

impl ProcessorSetting {
    pub(crate) fn new(heads: i64, sliceable: bool, upcast_attention: bool) -> Arc<Self> {
        Arc::new(Self {
            heads,
            upcast_attention,
            sliceable,
            code: AtomicI64::new(DEFAULT),
            backend: AtomicI64::new(0),
            fused: AtomicBool::new(false),
        })
    }

    pub(crate) fn get(&self) -> AttentionProcessor {
        match self.code.load(Ordering::Relaxed) {
            DEFAULT => AttentionProcessor::Default,
            MEMORY_EFFICIENT => AttentionProcessor::MemoryEfficient,
            size => AttentionProcessor::Sliced(size),
        }
    }

    fn set(&self, processor: AttentionProcessor) {
        let code = match processor {
            AttentionProcessor::Default => DEFAULT,
            AttentionProcessor::MemoryEfficient => MEMORY_EFFICIENT,
            AttentionProcessor::Sliced(size) => size,
        };
        self.code.store(code, Ordering::Relaxed);
    }

    pub(crate) fn is_fused(&self) -> bool {
        self.fused.load(Ordering::Relaxed)
    }

    /// Computes from now on as `other` does.
    pub(crate) fn adopt(&self, other: &Self) {
        for (own, other) in [(&self.code, &other.code), (&self.backend, &other.backend)] {
            own.store(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.fused.store(other.is_fused(), Ordering::Relaxed);
    }

    fn backend(&self) -> AttentionBackend {
        AttentionBackend::from_code(self.backend.load(Ordering::Relaxed))
    }

    /// `softmax(q k^T / sqrt(head_dim) + mask) v` for each head.
    ///
    /// `query` is `[batch, heads, queries, head_dim]`, and the same comes out.
    pub(crate) fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        attention_mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self.get() {
            AttentionProcessor::Sliced(size) => self.sliced(query, key, value, attention_mask, size),
            AttentionProcessor::MemoryEfficient if attention_mask.is_none() && query.device().is_cuda() => {
                efficient(query, key, value)
            }
            _ => match self.backend().kernel() {
                Some(kernel) => attention_by(kernel, query, key, value, attention_mask),
                None => scaled_dot_product_attention(query, key, value, attention_mask),
            },
        }
    }

    fn sliced(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        attention_mask: Option<&Tensor>,
        size: i64,
    ) -> Result<Tensor> {
        let (batch, heads, queries, head_dim) = query.size4()?;
        let [query, key, value] = [query.f_flatten(0, 1)?, key.f_flatten(0, 1)?, value.f_flatten(0, 1)?];
        let attention_mask = match attention_mask {
            None => None,
            Some(mask) => Some(mask.f_expand([batch, heads, -1, -1], false)?.f_flatten(0, 1)?),
        };
        let rows = batch * heads;
        let mut hidden_states = Tensor::f_zeros([rows, queries, head_dim], (query.f_kind()?, query.device()))?;
        for start in (0..rows).step_by(size.max(1) as usize) {
            let slice = |tensor: &Tensor| tensor.f_narrow(0, start, size.min(rows - start));
            let mask = attention_mask.as_ref().map(slice).transpose()?;
            let scores = self.scores(&slice(&query)?, &slice(&key)?, mask)?;
            slice(&hidden_states)?.f_copy_(&scores.f_bmm(&slice(&value)?)?)?;
        }
        hidden_states = hidden_states.f_view([batch, heads, queries, head_dim])?;
        Ok(hidden_states)
    }

    /// How much each query attends to each key: diffusers' `get_attention_scores`.
    fn scores(&self, query: &Tensor, key: &Tensor, attention_mask: Option<Tensor>) -> Result<Tensor> {
        let kind = query.f_kind()?;
        let computed = if self.upcast_attention { Kind::Float } else { kind };
        let (query, key) = (query.f_to_kind(computed)?, key.f_to_kind(computed)?);
        let (rows, queries, head_dim) = query.size3()?;
        let (_, keys, _) = key.size3()?;
        let (bias, beta) = match attention_mask {
            Some(mask) => (mask.f_to_kind(computed)?, 1.0),
            None => (Tensor::f_empty([rows, queries, keys], (computed, query.device()))?, 0.0),
        };
        let scale = (head_dim as f64).powf(-0.5);
        let scores = baddbmm(&bias, &query, &key.f_transpose(-1, -2)?, beta, scale)?;
        drop(bias);
        Ok(scores.f_softmax(-1, None::<Kind>)?.f_to_kind(kind)?)
    }
}

/// `softmax(q k^T / sqrt(head_dim) + mask) v` for each head, by whatever kernel libtorch picks.
///
/// # Shapes
/// `query` is `[batch, heads, queries, head_dim]`, and the same comes out; `key` and `value` are
/// `[batch, heads, keys, head_dim]`; `attention_mask` broadcasts to `[batch, heads, queries, keys]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    attention_mask: Option<&Tensor>,
) -> Result<Tensor> {
    Ok(Tensor::f_scaled_dot_product_attention(query, key, value, attention_mask, 0.0, false, None, false)?)
}

/// The same by libtorch's memory-efficient kernel, which CUDA alone has.
fn efficient(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (hidden_states, ..) = Tensor::f_internal_scaled_dot_product_efficient_attention(
        query,
        key,
        value,
        None::<Tensor>,
        false,
        0.0,
        false,
        None,
    )?;
    Ok(hidden_states)
}

/// Has the attentions at or below `module` computed by `backend`, where neither slices nor the memory-efficient kernel of
/// [`set_use_memory_efficient_attention`] are switched on.
// Differs from diffusers: there, the processors of Stable Diffusion's UNet and VAE pass the choice over.
pub fn set_attention_backend(module: &Node, backend: AttentionBackend) {
    for (_, setting) in attentions(module) {
        setting.backend.store(backend.code(), Ordering::Relaxed);
    }
}

/// Has each attention at or below `module` compute queries, keys and values as one product, or those of the text as keys and
/// values; or again one after the other. Fusing ends slices.
// Differs from diffusers: there, the weights are held twice, and moving the model moves both.
pub fn set_fused_projections(module: &Node, fused: bool) {
    for (_, setting) in attentions(module) {
        setting.fused.store(fused, Ordering::Relaxed);
        if fused {
            setting.set(AttentionProcessor::Default);
        }
    }
}

/// Which backend each attention at or below `module` has, by path.
#[must_use]
pub fn attention_backends(module: &Node) -> Vec<(String, AttentionBackend)> {
    attentions(module).into_iter().map(|(path, setting)| (path, setting.backend())).collect()
}

/// The attentions at or below `module`, by path.
fn attentions(module: &Node) -> Vec<(String, Arc<ProcessorSetting>)> {
    let setting = |node: Node| Some((node.path().to_string(), node.setting::<ProcessorSetting>()?));
    module.walk().into_iter().filter_map(setting).collect()
}

/// How each attention at or below `module` computes, by path.
#[must_use]
pub fn attn_processors(module: &Node) -> Vec<(String, AttentionProcessor)> {
    attentions(module).into_iter().map(|(path, setting)| (path, setting.get())).collect()
}

/// Computes the attentions at or below `module` in slices, or with `None` all heads at once again.
///
/// Those of a VAE are left as they are, as in diffusers.
///
/// # Errors
/// [`Error::Argument`] naming the first attention with fewer heads than a slice is to have; nothing is changed then.
pub fn set_attention_slice(module: &Node, slicing: Option<AttentionSlicing>) -> Result<()> {
    let attentions: Vec<_> = attentions(module).into_iter().filter(|(_, setting)| setting.sliceable).collect();
    for (path, setting) in &attentions {
        let size = slicing.map_or(1, |slicing| slicing.size(setting.heads));
        check_slice(size, setting.heads).map_err(|error| error.at(path))?;
    }
    for (_, setting) in attentions {
        let sliced = |slicing: AttentionSlicing| AttentionProcessor::Sliced(slicing.size(setting.heads));
        setting.set(slicing.map_or(AttentionProcessor::Default, sliced));
    }
    Ok(())
}

/// Computes the attentions at or below `module` in slices of these many heads each: one number for each attention that
/// can be sliced, in the order of [`attn_processors`]. diffusers' `set_attention_slice` with a list.
///
/// # Errors
/// [`Error::Argument`] for another number of sizes than there are attentions, or naming the first attention with fewer
/// heads than its slice is to have; nothing is changed then.
pub fn set_attention_slices(module: &Node, sizes: &[i64]) -> Result<()> {
    let attentions: Vec<_> = attentions(module).into_iter().filter(|(_, setting)| setting.sliceable).collect();
    if attentions.len() != sizes.len() {
        let (found, expected) = (sizes.len(), attentions.len());
        return Err(Error::Argument(format!("{found} slice sizes were given for {expected} attentions")));
    }
    for ((path, setting), size) in attentions.iter().zip(sizes) {
        check_slice(*size, setting.heads).map_err(|error| error.at(path))?;
    }
    for ((_, setting), size) in attentions.iter().zip(sizes) {
        setting.set(AttentionProcessor::Sliced(*size));
    }
    Ok(())
}

fn check_slice(size: i64, heads: i64) -> Result<()> {
    match (1..=heads).contains(&size) {
        true => Ok(()),
        false => Err(Error::Argument(format!("a slice has from 1 to {heads} heads, as many as the layer, not {size}"))),
    }
}

/// Has the attentions at or below `module` computed by libtorch's memory-efficient kernel, or again by whatever kernel
/// libtorch picks. Either ends slices. Says whether the module is where that kernel is: on CUDA.
pub fn set_use_memory_efficient_attention(module: &Node, use_memory_efficient_attention: bool) -> bool {
    let processor = match use_memory_efficient_attention {
        true => AttentionProcessor::MemoryEfficient,
        false => AttentionProcessor::Default,
    };
    for (_, setting) in attentions(module) {
        setting.set(processor);
    }
    module.device().is_cuda()
}
