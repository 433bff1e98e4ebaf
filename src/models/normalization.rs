//! Norms whose scale and shift come from the timestep.
//!
//! Mirrors `diffusers/models/normalization.py` (0.42.1): adaptive layer norm, Peebles and Xie 2022, arXiv:2212.09748.

use crate::error::Result;
use crate::nn::{LayerNorm, Linear, Module, Node, Scope};
use crate::torch::{NumberExt, TensorExt};
use tch::Tensor;

/// What the norms add to the variance.
const EPS: f64 = 1e-6;

/// `normed * (1 + scale) + shift`, with `[batch, dim]` for the tokens of each item.
fn modulate(normed: Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    normed.mul_into(&scale.plus(1.0)?.f_unsqueeze(1)?)?.add_into(&shift.f_unsqueeze(1)?)
}

/// Of the embedding of time, `N` vectors: the twin of SiLU and a linear layer.
fn chunks<const N: usize>(linear: &Linear, emb: &Tensor) -> Result<[Tensor; N]> {
    linear.forward(&emb.f_silu()?)?.chunks(1)
}

/// What [`AdaLayerNormZero`] reads off the embedding of time for the rest of its block, `[batch, 1, dim]` each.
#[derive(Debug)]
pub struct Modulation {
    /// How much of the attention's output is added.
    pub gate_msa: Tensor,
    /// What the feed-forward's input is shifted by.
    pub shift_mlp: Tensor,
    /// What the feed-forward's input is scaled by, beyond 1.
    pub scale_mlp: Tensor,
    /// How much of the feed-forward's output is added.
    pub gate_mlp: Tensor,
}

impl Modulation {
    /// The input of the feed-forward: `normed`, scaled and shifted.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn modulate_mlp(&self, normed: Tensor) -> Result<Tensor> {
        normed.mul_into(&self.scale_mlp.plus(1.0)?)?.add_into(&self.shift_mlp)
    }
}

/// A layer norm before attention, with all that its block takes from the embedding of time.
#[derive(Debug)]
pub struct AdaLayerNormZero {
    node: Node,
    linear: Linear,
    norm: LayerNorm,
}

impl AdaLayerNormZero {
    /// Reads `linear`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, embedding_dim: i64) -> Result<Self> {
        let linear = Linear::new(&scope / "linear", embedding_dim, 6 * embedding_dim, true)?;
        let norm = LayerNorm::without_affine(&scope / "norm", embedding_dim, EPS);
        Ok(Self { node: scope.finish::<Self>(), linear, norm })
    }

    /// # Shapes
    /// `x` is `[batch, tokens, dim]`, and the same comes out; `emb` is `[batch, dim]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, emb: &Tensor) -> Result<(Tensor, Modulation)> {
        let [x, gate_msa, shift_mlp, scale_mlp, gate_mlp] = self.node.call([x, emb], |[x, emb]| {
            let [shift, scale, rest @ ..] = chunks::<6>(&self.linear, emb)?;
            let normed = modulate(self.norm.forward(x)?, &scale, &shift)?;
            let [gate_msa, shift_mlp, scale_mlp, gate_mlp] = rest;
            let each = [gate_msa, shift_mlp, scale_mlp, gate_mlp].map(|vector| vector.f_unsqueeze(1));
            let [gate_msa, shift_mlp, scale_mlp, gate_mlp] = each;
            Ok([normed, gate_msa?, shift_mlp?, scale_mlp?, gate_mlp?])
        })?;
        Ok((x, Modulation { gate_msa, shift_mlp, scale_mlp, gate_mlp }))
    }
}

impl Module for AdaLayerNormZero {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// A layer norm for a block of one branch, and the gate of its output.
#[derive(Debug)]
pub struct AdaLayerNormZeroSingle {
    node: Node,
    linear: Linear,
    norm: LayerNorm,
}

impl AdaLayerNormZeroSingle {
    /// Reads `linear`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, embedding_dim: i64) -> Result<Self> {
        let linear = Linear::new(&scope / "linear", embedding_dim, 3 * embedding_dim, true)?;
        let norm = LayerNorm::without_affine(&scope / "norm", embedding_dim, EPS);
        Ok(Self { node: scope.finish::<Self>(), linear, norm })
    }

    /// The norm, and the gate.
    ///
    /// # Shapes
    /// `x` is `[batch, tokens, dim]`, and the same comes out; `emb` is `[batch, dim]`, the gate `[batch, 1, dim]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, emb: &Tensor) -> Result<[Tensor; 2]> {
        self.node.call([x, emb], |[x, emb]| {
            let [shift, scale, gate] = chunks::<3>(&self.linear, emb)?;
            Ok([modulate(self.norm.forward(x)?, &scale, &shift)?, gate.f_unsqueeze(1)?])
        })
    }
}

impl Module for AdaLayerNormZeroSingle {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The layer norm at a transformer's end.
#[derive(Debug)]
pub struct AdaLayerNormContinuous {
    node: Node,
    linear: Linear,
    norm: LayerNorm,
}

impl AdaLayerNormContinuous {
    /// Reads `linear`; the norm has no weights of its own.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, embedding_dim: i64, conditioning_embedding_dim: i64) -> Result<Self> {
        let linear = Linear::new(&scope / "linear", conditioning_embedding_dim, 2 * embedding_dim, true)?;
        let norm = LayerNorm::without_affine(&scope / "norm", embedding_dim, EPS);
        Ok(Self { node: scope.finish::<Self>(), linear, norm })
    }

    /// # Shapes
    /// `x` is `[batch, tokens, embedding_dim]`, and the same comes out; `conditioning_embedding` is
    /// `[batch, conditioning_embedding_dim]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, conditioning_embedding: &Tensor) -> Result<Tensor> {
        let [x] = self.node.call([x, conditioning_embedding], |[x, emb]| {
            let emb = self.linear.forward(&emb.f_silu()?.f_to_kind(x.f_kind()?)?)?;
            let [scale, shift] = emb.chunks(1)?;
            Ok([modulate(self.norm.forward(x)?, &scale, &shift)?])
        })?;
        Ok(x)
    }
}

impl Module for AdaLayerNormContinuous {
    fn node(&self) -> &Node {
        &self.node
    }
}
