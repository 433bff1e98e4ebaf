//! Traces with their weights as constants, one for each kind of inputs.

use super::CompileStats;
use crate::error::Result;
use crate::nn::Node;
use crate::torch::TracedModule;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tch::{Kind, Tensor};

/// How many are kept, as by torch's `recompile_limit`; the one that was not used for the longest time goes.
const LIMIT: usize = 8;

/// An input of a graph: its name, and where a graph is to serve all sizes, the shape with -1 at the sides that may change.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::models) struct Slot {
    pub(in crate::models) name: String,
    kind: Kind,
    shape: Vec<i64>,
    contiguous: bool,
}

impl Slot {
    /// An input that has to look exactly like `tensor`.
    pub(in crate::models) fn exact(name: &str, tensor: &Tensor) -> Result<Self> {
        let (kind, contiguous) = (tensor.f_kind()?, tensor.is_contiguous());
        Ok(Self { name: name.into(), kind, shape: tensor.size(), contiguous })
    }

    /// The same, whose `sides` may change.
    pub(in crate::models) fn free(mut self, sides: &[usize]) -> Self {
        for side in sides {
            if let Some(length) = self.shape.get_mut(*side) {
                *length = -1;
            }
        }
        self
    }
}

#[derive(Debug)]
struct Graph {
    slots: Vec<Slot>,
    module: Arc<TracedModule>,
}

/// Where a weight is, and in what dtype.
type Address = (usize, Kind);

#[derive(Debug, Default)]
struct State {
    /// The last one was used last.
    graphs: Vec<Graph>,
    weights: Vec<Address>,
    compiled: usize,
    stats: CompileStats,
}

/// What was recorded of a model so far.
#[derive(Debug, Default)]
pub(in crate::models) struct Graphs(Mutex<State>);

impl Graphs {
    /// The graph for inputs of the first of `kinds` that there is one for, made by `trace` for the last of them if there is
    /// none. Graphs of other weights than those at `node` now are dropped.
    pub(in crate::models) fn of(
        &self,
        node: &Node,
        kinds: impl FnOnce(bool) -> Result<Vec<Vec<Slot>>>,
        trace: impl FnOnce(&[Slot]) -> Result<TracedModule>,
    ) -> Result<Arc<TracedModule>> {
        let weights = addresses(node)?;
        let mut state = self.lock();
        if state.weights != weights {
            state.graphs.clear();
            state.weights = weights;
        }
        let kinds = kinds(!state.graphs.is_empty())?;
        let found = kinds.iter().find_map(|kind| state.graphs.iter().position(|graph| graph.slots == *kind));
        if let Some(index) = found {
            let graph = state.graphs.remove(index);
            let module = graph.module.clone();
            state.graphs.push(graph);
            return Ok(module);
        }
        let slots = kinds.into_iter().next_back().unwrap_or_default();
        let start = Instant::now();
        // A graph of weights in a file would hold a copy of its own.
        own_weights(node)?;
        let module = Arc::new(trace(&slots)?);
        state.weights = addresses(node)?;
        state.stats.compile_time += start.elapsed();
        state.stats.recompilations += usize::from(state.compiled > 0);
        state.compiled += 1;
        if state.graphs.len() == LIMIT {
            drop(state.graphs.remove(0));
        }
        state.graphs.push(Graph { slots, module: module.clone() });
        Ok(module)
    }

    pub(in crate::models) fn stats(&self) -> CompileStats {
        let state = self.lock();
        CompileStats { graphs: state.graphs.len(), ..state.stats }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What panicked while tracing has added no graph.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn addresses(node: &Node) -> Result<Vec<Address>> {
    let weights = node.params().into_iter().map(|(_, param)| param.get());
    weights.map(|weight| Ok((weight.data_ptr() as usize, weight.f_kind()?))).collect()
}

/// Gives weights that lie in the map of a file memory of their own.
fn own_weights(node: &Node) -> Result<()> {
    for (_, param) in node.params() {
        let weight = param.get();
        if let Some(origin) = param.origin()
            && origin.is(&weight)?
        {
            let mut own = weight.f_empty_like()?;
            own.f_copy_(&weight)?;
            drop((param.replace(own), weight));
            origin.release()?;
        }
    }
    Ok(())
}
