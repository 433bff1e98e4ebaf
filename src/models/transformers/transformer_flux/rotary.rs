//! Places as rotations.

use crate::error::{Error, Result};
use crate::torch::NumberExt;
use tch::{Kind, Tensor};

/// The longest wavelength of the rotations, in places over 2 pi.
const THETA: f64 = 10_000.0;

/// Rotary embedding (Su et al. 2021, arXiv:2104.09864) of tokens that have a place on several axes: `FluxPosEmbed`.
#[derive(Debug)]
pub(super) struct Rotary {
    /// `[1, tokens, 1, head_dim]`, in float32.
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// `ids` is `[tokens, axes]`; `axes_dims` says how many channels of a head turn with each axis.
    pub(super) fn new(ids: &Tensor, axes_dims: &[i64]) -> Result<Self> {
        match ids.size()[..] {
            [_, axes] if axes == axes_dims.len() as i64 => (),
            ref size => {
                let axes = axes_dims.len();
                return Err(Error::Shape(format!("places are [tokens, {axes}] for this model, got {size:?}")));
            }
        }
        let (mut cos, mut sin) = (vec![], vec![]);
        let places = ids.f_to_kind(Kind::Float)?;
        for (axis, dim) in axes_dims.iter().enumerate() {
            let exponent = Tensor::f_arange_start_step(0, *dim, 2, (Kind::Double, ids.device()))?;
            let frequencies = Tensor::f_pow_scalar(THETA, &exponent.over(*dim as f64)?)?.f_reciprocal()?;
            let angles = places.f_select(1, axis as i64)?.f_outer(&frequencies)?;
            let spread = |part: Tensor| part.f_repeat_interleave_self_int(2, 1, None)?.f_to_kind(Kind::Float);
            cos.push(spread(angles.f_cos()?)?);
            sin.push(spread(angles.f_sin()?)?);
        }
        let joined = |parts: &[Tensor]| Tensor::f_cat(parts, -1)?.f_unsqueeze(0)?.f_unsqueeze(2);
        Ok(Self { cos: joined(&cos)?, sin: joined(&sin)? })
    }

    /// Cosines and sines, `[1, tokens, 1, head_dim]`.
    pub(super) fn parts(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }

    /// The rotations of these [`Rotary::parts`].
    pub(super) fn of_parts(cos: &Tensor, sin: &Tensor) -> Self {
        Self { cos: cos.shallow_clone(), sin: sin.shallow_clone() }
    }

    /// `x` `[batch, tokens, heads, head_dim]`, each pair of its channels turned; computed in float32.
    pub(super) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let pairs = x.f_unflatten(-1, [-1, 2])?;
        let (real, imaginary) = (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?);
        let turned = Tensor::f_stack(&[imaginary.f_neg()?, real], -1)?.f_flatten(3, 4)?;
        let mut sum = x.f_to_kind(Kind::Float)?.f_mul(&self.cos)?;
        sum = sum.f_add_(&turned.f_to_kind(Kind::Float)?.f_mul(&self.sin)?)?;
        Ok(sum.f_to_kind(kind)?)
    }
}
