//! The weights of one tree in a second one.

use super::node::{Node, Param};
use super::scope::Weights;
use crate::error::{Error, Result};
use crate::torch::MappedTensor;
use std::collections::HashMap;
use tch::Tensor;

/// The weights at or below a node, for building a second model over them: it gets the very tensors, and slots of its own for
/// them. A weight that is moved, cast or replaced in one model stays as it is in the other; one that is changed in place is
/// changed in both.
#[derive(Debug)]
pub struct SharedWeights(HashMap<String, Param>);

impl SharedWeights {
    /// The weights as they are in `node`'s slots now.
    ///
    /// # Errors
    /// [`Error::Argument`] naming a module with a hook around it: a second model would not have the hook, and what lies in the
    /// slots may be a stand-in that only the hook knows how to fill.
    pub fn of(node: &Node) -> Result<Self> {
        for module in node.walk() {
            if let Some(name) = module.hook_names().first() {
                return Err(Error::Argument(format!(
                    "the hook `{name}` is around the module, and a second model would be without it: take it off first"
                ))
                .at(module.path()));
            }
        }
        Ok(Self(node.params().into_iter().collect()))
    }
}

impl Weights for SharedWeights {
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        let found = self.0.get(path).map(Param::get);
        match found {
            Some(tensor) if tensor.size() == shape => Ok(tensor),
            Some(tensor) => Err(Error::Shape(format!("`{path}` should be {shape:?} and is {:?}", tensor.size()))),
            None => Err(Error::Argument(format!("the model whose weights are shared has no `{path}`"))),
        }
    }

    fn origin(&self, path: &str) -> Option<MappedTensor> {
        self.0.get(path)?.origin().cloned()
    }
}
