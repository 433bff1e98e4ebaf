//! Normalisation: over groups of channels, and over the last dimension.

use super::{Module, Node, Param, Scope};
use crate::error::{Error, Result};
use tch::Tensor;

/// The twin of `torch.nn.GroupNorm` with weight and bias (Wu and He 2018, arXiv:1803.08494).
#[derive(Debug)]
pub struct GroupNorm {
    node: Node,
    weight: Param,
    bias: Param,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, `[channels]` each.
    ///
    /// # Errors
    /// [`Error::Config`] if the channels do not divide into the groups; or if the weights cannot be had.
    pub fn new(scope: Scope<'_>, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        if groups < 1 || channels % groups != 0 {
            return Err(Error::Config(format!("a norm of {channels} channels cannot have {groups} groups")));
        }
        let weight = scope.param("weight", &[channels])?;
        let bias = scope.param("bias", &[channels])?;
        Ok(Self { node: scope.finish::<Self>(), weight, bias, groups, eps })
    }

    /// # Shapes
    /// `[batch, channels, ..]`, and the same comes out.
    ///
    /// # Errors
    /// If the channels do not divide into the groups.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let (weight, bias) = (self.weight.get(), self.bias.get());
            Ok([hidden_states.f_group_norm(self.groups, Some(&weight), Some(&bias), self.eps, true)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for GroupNorm {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The twin of `torch.nn.LayerNorm` over the last dimension (Ba et al. 2016, arXiv:1607.06450).
#[derive(Debug)]
pub struct LayerNorm {
    node: Node,
    /// Weight and bias.
    affine: Option<[Param; 2]>,
    dim: i64,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, `[dim]` each.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(scope: Scope<'_>, dim: i64, eps: f64) -> Result<Self> {
        let affine = Some([scope.param("weight", &[dim])?, scope.param("bias", &[dim])?]);
        Ok(Self { node: scope.finish::<Self>(), affine, dim, eps })
    }

    /// Without weight and bias: `elementwise_affine=False`.
    #[must_use]
    pub fn without_affine(scope: Scope<'_>, dim: i64, eps: f64) -> Self {
        Self { node: scope.finish::<Self>(), affine: None, dim, eps }
    }

    /// # Shapes
    /// `[.., dim]`, and the same comes out.
    ///
    /// # Errors
    /// If the last dimension is not `dim`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            let [weight, bias] = match &self.affine {
                Some(affine) => affine.each_ref().map(|param| Some(param.get())),
                None => [None, None],
            };
            Ok([hidden_states.f_layer_norm([self.dim], weight, bias, self.eps, true)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for LayerNorm {
    fn node(&self) -> &Node {
        &self.node
    }
}

/// The twin of `torch.nn.RMSNorm` over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).
#[derive(Debug)]
pub struct RMSNorm {
    node: Node,
    weight: Param,
    dim: i64,
    eps: f64,
}

impl RMSNorm {
    /// Reads `weight`, `[dim]`.
    ///
    /// # Errors
    /// If the weight cannot be had.
    pub fn new(scope: Scope<'_>, dim: i64, eps: f64) -> Result<Self> {
        let weight = scope.param("weight", &[dim])?;
        Ok(Self { node: scope.finish::<Self>(), weight, dim, eps })
    }

    /// # Shapes
    /// `[.., dim]`, and the same comes out.
    ///
    /// # Errors
    /// If the last dimension is not `dim`.
    pub fn forward(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let [hidden_states] = self.node.call([hidden_states], |[hidden_states]| {
            Ok([hidden_states.f_rms_norm([self.dim], Some(&self.weight.get()), self.eps)?])
        })?;
        Ok(hidden_states)
    }
}

impl Module for RMSNorm {
    fn node(&self) -> &Node {
        &self.node
    }
}
