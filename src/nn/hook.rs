//! Behaviour around a module's forward.

use super::Node;
use crate::error::Result;
use std::fmt::Debug;
use std::sync::Arc;
use tch::{Kind, Tensor};

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

    /// The dtype that the module computes in, for a hook that lets its weights be stored in another; none by default.
    fn compute_dtype(&self) -> Option<Kind> {
        None
    }
}

/// A hook under the name it is removed by.
#[derive(Clone, Debug)]
pub(super) struct NamedHook {
    pub(super) name: String,
    pub(super) hook: Arc<dyn Hook>,
}

/// The hooks that are still to run, and the module behind them.
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
