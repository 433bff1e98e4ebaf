//! Behaviour around a module's forward.

use super::{Node, Param};
use crate::error::Result;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Behaviour around a module's forward: offloading, casting, caching, skipping.
///
/// # Examples
/// A hook that counts how often a module runs:
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use tch_diffusers::{Result, nn::{Hook, Next, Node}};
///
/// #[derive(Debug, Default)]
/// struct Count(AtomicUsize);
///
/// impl Hook for Count {
///     fn around(&self, _: &Node, inputs: &[tch::Tensor], next: Next<'_>) -> Result<Vec<tch::Tensor>> {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         next.run(inputs)
///     }
/// }
/// ```
pub trait Hook: Debug + Send + Sync {
    /// Runs in the module's place. `next.run(inputs)` runs the module itself; not calling it skips the module. What
    /// follows that line is the clean-up, and runs after errors too as long as `?` is not put on it.
    ///
    /// # Errors
    /// Whatever the hook or the module fails with.
    fn around(&self, node: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>>;

    /// Undoes what was done to the weights when the hook was attached; [`Node::detach_hook`] calls it.
    ///
    /// # Errors
    /// Where it cannot be undone.
    fn detach(&self) -> Result<()> {
        Ok(())
    }

    /// Where the hook takes weights to for a forward, if it moves any.
    fn execution_device(&self) -> Option<Device> {
        None
    }

    /// What weights take around a forward beside what they take all the time, for a model whose dtype is `kind`; nothing by
    /// default.
    fn brings(&self, kind: Kind) -> BroughtWeights {
        let _ = kind;
        BroughtWeights::default()
    }

    /// The dtype that the module computes in, for a hook that lets its weights be stored in another; none by default.
    fn compute_dtype(&self) -> Option<Kind> {
        None
    }

    /// Weights of the hook's own, beside the module's: they are moved, cast and laid out with those, and are no part of the
    /// checkpoint. None by default.
    fn weights(&self) -> Vec<Param> {
        vec![]
    }

    /// The hook itself, for those who know what it is; none by default.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

/// Memory that a hook takes for weights while modules run, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BroughtWeights {
    /// Copies that are made: on another device, or in another dtype.
    pub copied: usize,
    /// Pages of files that are looked at and then given back.
    pub mapped: usize,
    /// Whether they come with this module's forward, rather than with that of an earlier member of a group.
    pub begins: bool,
    /// Whether they go with it.
    pub ends: bool,
}

/// A hook under the name it is removed by.
#[derive(Clone, Debug)]
pub(super) struct NamedHook {
    pub(super) name: String,
    pub(super) hook: Arc<dyn Hook>,
}

/// The hooks that are still to run, and the module behind them.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    pub(super) node: &'a Node,
    pub(super) hooks: &'a [NamedHook],
    pub(super) forward: &'a dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>,
}

impl Next<'_> {
    /// Runs the rest: the next hook, or the module itself.
    ///
    /// # Errors
    /// Whatever the rest fails with.
    pub fn run(self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        match self.hooks.split_first() {
            None => (self.forward)(inputs),
            Some((first, hooks)) => first.hook.around(self.node, inputs, Next { hooks, ..self }),
        }
    }
}
