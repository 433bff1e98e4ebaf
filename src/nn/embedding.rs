//! A table of vectors.

use super::{Module, Node, Param, Scope};
use crate::error::Result;
use tch::Tensor;

/// The twin of `torch.nn.Embedding`.
#[derive(Debug)]
pub struct Embedding {
    node: Node,
    weight: Param,
}

impl Embedding {
    /// Reads `weight` `[rows, dim]`.
    ///
    /// # Errors
    /// If the weight cannot be had.
    pub fn new(scope: Scope<'_>, rows: i64, dim: i64) -> Result<Self> {
        let weight = scope.param("weight", &[rows, dim])?;
        Ok(Self { node: scope.finish::<Self>(), weight })
    }

    /// # Shapes
    /// `[..]` of row numbers (int64) to `[.., dim]`.
    ///
    /// # Errors
    /// If a number is not below `rows`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let [rows] =
            self.node.call([ids], |[ids]| Ok([Tensor::f_embedding(&self.weight.get(), ids, -1, false, false)?]))?;
        Ok(rows)
    }
}

impl Module for Embedding {
    fn node(&self) -> &Node {
        &self.node
    }
}
