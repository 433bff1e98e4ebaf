//! Building a tree: where the weights come from, and where in the tree one is.

use super::node::{Module, Node, Param, join};
use crate::error::Result;
use crate::torch::{Generator, MappedTensor, NumberExt};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Div;
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Kind, Tensor};

/// Where weights come from: a checkpoint, an initialiser, a quantizer around either.
pub trait Weights {
    /// The weight at `path`, of `shape`.
    ///
    /// # Errors
    /// If it cannot be had.
    fn get(&self, path: &str, shape: &[i64]) -> Result<Tensor>;

    /// The place in a file that the weight at `path` was read from and can be read from again, if there is one.
    fn origin(&self, path: &str) -> Option<MappedTensor> {
        let _ = path;
        None
    }
}

/// Small random weights from a seed, for tests and for benchmarks of shapes without a checkpoint.
#[derive(Debug)]
pub struct RandomWeights {
    generator: Mutex<Generator>,
    kind: Kind,
}

impl RandomWeights {
    /// Weights of dtype `kind` from `seed`, on the CPU.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn new(seed: u64, kind: Kind) -> Result<Self> {
        Ok(Self { generator: Mutex::new(Generator::cpu(seed)?), kind })
    }
}

impl Weights for RandomWeights {
    fn get(&self, _: &str, shape: &[i64]) -> Result<Tensor> {
        let mut generator = self.generator.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(generator.randn(shape, Kind::Float)?.times(0.02)?.f_to_kind(self.kind)?)
    }
}

/// A node under construction, and the weights it is built from. `&scope / "to_q"` steps into a child.
///
/// # Examples
/// ```
/// use tch_diffusers::nn::{Linear, Module, RandomWeights, Scope};
/// let weights = RandomWeights::new(0, tch::Kind::Float)?;
/// let scope = Scope::root(&weights);
/// let proj = Linear::new(&scope / "net" / 0 / "proj", 8, 32, true)?;
/// assert_eq!(proj.node().path(), "net.0.proj");
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone)]
pub struct Scope<'a> {
    node: Node,
    weights: &'a dyn Weights,
}

impl<'a> Scope<'a> {
    /// The top of a new tree, filled from `weights`.
    #[must_use]
    pub fn root(weights: &'a dyn Weights) -> Self {
        Self { node: Node::new(String::new()), weights }
    }

    /// The weight `name` of this node.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn param(&self, name: &str, shape: &[i64]) -> Result<Param> {
        let path = join(self.node.path(), name);
        let tensor = self.weights.get(&path, shape)?;
        let param = Param::new(tensor, self.weights.origin(&path).map(|origin| origin.reshaped(shape)));
        self.node.push_param(name, param.clone());
        Ok(param)
    }

    /// Shares `setting` with whoever walks the tree: [`Node::setting`] finds it. A node has one, the first.
    pub fn attach<T: Any + Debug + Send + Sync>(&self, setting: Arc<T>) {
        self.node.attach(setting);
    }

    /// The finished node, its class named after `M`.
    #[must_use]
    pub fn finish<M: Module>(self) -> Node {
        self.node.set_class(std::any::type_name::<M>().rsplit("::").next().unwrap_or_default());
        self.node
    }
}

impl<'a, Name: ToString> Div<Name> for &Scope<'a> {
    type Output = Scope<'a>;

    fn div(self, name: Name) -> Scope<'a> {
        Scope { node: self.node.child_or(name.to_string(), Node::new), weights: self.weights }
    }
}

impl<'a, Name: ToString> Div<Name> for Scope<'a> {
    type Output = Scope<'a>;

    fn div(self, name: Name) -> Scope<'a> {
        &self / name
    }
}
