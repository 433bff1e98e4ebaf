//! Weights from memory, and whether a model takes all of them.

use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;
use tch_diffusers::nn::{Node, Weights};
use tch_diffusers::{Error, Result};

/// The tensors of a checkpoint, by key.
#[derive(Debug)]
pub(crate) struct Checkpoint(BTreeMap<String, Tensor>);

impl Checkpoint {
    pub(crate) fn new(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self(tensors.into_iter().collect())
    }

    /// Holds the keys of `node` to those of the checkpoint.
    pub(crate) fn assert_all_used(&self, node: &Node) {
        let used: BTreeSet<_> = node.params().into_iter().map(|(key, _)| key).collect();
        assert_eq!(used, self.0.keys().cloned().collect());
    }
}

impl Weights for Checkpoint {
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor> {
        match self.0.get(path) {
            Some(tensor) if tensor.size() == shape => Ok(tensor.shallow_clone()),
            Some(tensor) => Err(Error::Shape(format!("{path}: expected {shape:?}, got {:?}", tensor.size()))),
            None => Err(Error::MissingWeights { file: "memory".into(), keys: vec![path.into()] }),
        }
    }
}
