//! The first half of a feed-forward: a projection and its non-linearity.
//!
//! Mirrors `GELU` and `GEGLU` of `diffusers/models/activations.py` (0.42.1): Hendrycks and Gimpel 2016,
//! arXiv:1606.08415, and Shazeer 2020, arXiv:2002.05202.

use crate::error::Result;
use crate::nn::{Linear, Module, Node, Scope};
use crate::torch::TensorExt;
use tch::Tensor;

/// A projection, then GELU by the error function or by its approximation with the hyperbolic tangent.
#[derive(Debug)]
pub struct GELU {
    node: Node,
    proj: Linear,
    approximate: &'static str,
}

impl GELU {
    /// Reads `proj`; `approximate` chooses the hyperbolic tangent.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, dim_in: i64, dim_out: i64, approximate: bool) -> Result<Self> {
        let proj = Linear::new(&scope / "proj", dim_in, dim_out, true)?;
        let approximate = if approximate { "tanh" } else { "none" };
        Ok(Self { node: scope.finish::<Self>(), proj, approximate })
    }

    /// # Shapes
    /// `[.., dim_in]` to `[.., dim_out]`.
    ///
    /// # Errors
    /// If the last dimension is not `dim_in`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            Ok([self.proj.forward(hidden_states)?.f_gelu(self.approximate)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for GELU {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// A projection to twice the width, one half of which gates the other through GELU.
#[derive(Debug)]
pub struct GEGLU {
    node: Node,
    proj: Linear,
}

impl GEGLU {
    /// Reads `proj`, from `dim_in` to `2 * dim_out`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, dim_in: i64, dim_out: i64) -> Result<Self> {
        let proj = Linear::new(&scope / "proj", dim_in, dim_out * 2, true)?;
        Ok(Self { node: scope.finish::<Self>(), proj })
    }

    /// # Shapes
    /// `[.., dim_in]` to `[.., dim_out]`.
    ///
    /// # Errors
    /// If the last dimension is not `dim_in`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let [hidden_states, gate] = self.proj.forward(hidden_states)?.chunks::<2>(-1)?;
            Ok([hidden_states.f_mul(&gate.f_gelu("none")?)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for GEGLU {
    fn node(&self) -> &Node {
        &self.node
    }
}
