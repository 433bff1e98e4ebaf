//! Traces as CUDA graphs: one graph for each trace and each kind of inputs, all in one pool of memory.

use super::CompileStats;
use super::regional::Look;
use crate::error::{Error, Result};
use crate::torch::{CudaGraph, CudaGraphPool, Event, Stream, TracedModule};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// How many graphs are kept; the one that was not used for the longest time goes.
const LIMIT: usize = 8;

/// A trace that runs as a graph: inputs are copied to where the graph reads, and results from where it writes.
#[derive(Debug)]
struct CapturedTrace {
    graph: CudaGraph,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

fn copied(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

impl CapturedTrace {
    fn new(pool: &CudaGraphPool, module: &TracedModule, inputs: &[&Tensor]) -> Result<Self> {
        let placed = inputs.iter().map(|input| copied(&input.f_to_device(pool.device())?));
        let inputs = placed.collect::<Result<Vec<_>>>()?;
        let read: Vec<_> = inputs.iter().collect();
        let (graph, outputs) = pool.capture(|| module.forward(&read))?;
        Ok(Self { graph, inputs, outputs })
    }

    fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        for (place, input) in self.inputs.iter().zip(inputs) {
            place.shallow_clone().f_copy_(input)?;
        }
        self.graph.replay()?;
        self.outputs.iter().map(copied).collect()
    }
}

/// What there is for a trace and a kind of inputs: a graph, or why there is none.
type Outcome<G> = Result<G, String>;

#[derive(Debug)]
struct Entry<G> {
    /// Gone where the trace was dropped, because its weights were moved or replaced; what was captured of it is stale then.
    module: Weak<TracedModule>,
    inputs: Vec<Look>,
    outcome: Outcome<G>,
}

/// Graphs by what they were captured for.
#[derive(Debug)]
struct Shelf<G> {
    /// The last one was used last.
    entries: Vec<Entry<G>>,
    /// How often something was captured.
    captures: usize,
    spent: Duration,
}

impl<G> Default for Shelf<G> {
    fn default() -> Self {
        Self { entries: vec![], captures: 0, spent: Duration::ZERO }
    }
}

impl<G> Shelf<G> {
    /// The graph of `module` for `inputs`, made by `capture` if there is none; a reason why there can be none is kept as well.
    fn of(
        &mut self,
        module: &Arc<TracedModule>,
        inputs: Vec<Look>,
        capture: impl FnOnce() -> Result<G>,
    ) -> Result<&Outcome<G>> {
        self.entries.retain(|entry| entry.module.strong_count() > 0);
        let is_it = |entry: &Entry<G>| entry.module.as_ptr() == Arc::as_ptr(module) && entry.inputs == inputs;
        if let Some(index) = self.entries.iter().position(is_it) {
            // To the end, where those are that were used last.
            self.entries[index..].rotate_left(1);
        } else {
            if self.entries.len() == LIMIT {
                drop(self.entries.remove(0));
            }
            let start = Instant::now();
            let outcome = match capture() {
                Ok(graph) => Ok(graph),
                Err(error) if matches!(error.kind(), Error::Unsupported(_)) => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            self.spent += start.elapsed();
            self.captures += usize::from(outcome.is_ok());
            self.entries.push(Entry { module: Arc::downgrade(module), inputs, outcome });
        }
        let last = self.entries.last().map(|entry| &entry.outcome);
        last.ok_or_else(|| Error::Unsupported("nothing was captured".into()))
    }

    fn graphs(&self) -> usize {
        let alive = |entry: &&Entry<G>| entry.outcome.is_ok() && entry.module.strong_count() > 0;
        self.entries.iter().filter(alive).count()
    }
}

#[derive(Debug, Default)]
struct State {
    shelf: Shelf<CapturedTrace>,
    pool: Option<CudaGraphPool>,
    /// Behind the last replay: graphs of one pool may not run beside each other.
    last: Option<Event>,
    uncaptured: usize,
}

/// What was captured of the traces of a model.
#[derive(Debug)]
pub(super) struct Captures {
    fullgraph: bool,
    state: Mutex<State>,
}

impl Captures {
    /// What cannot be captured is an error with `fullgraph`; else the trace runs as it is.
    pub(super) fn new(fullgraph: bool) -> Self {
        Self { fullgraph, state: Mutex::default() }
    }

    /// Runs `module`, whose weights are on `device`, as a graph.
    pub(super) fn run(&self, device: Device, module: &Arc<TracedModule>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let looks = inputs.iter().map(|input| Look::of(input)).collect::<Result<Vec<_>>>()?;
        let mut state = self.lock();
        let State { shelf, pool, last, uncaptured } = &mut *state;
        let capture = || {
            if pool.as_ref().is_none_or(|pool| pool.device() != device) {
                *pool = Some(CudaGraphPool::new(device)?);
                *last = None;
            }
            let pool = pool.as_ref().ok_or_else(|| Error::Unsupported("there is no pool for CUDA graphs".into()))?;
            CapturedTrace::new(pool, module, inputs)
        };
        match shelf.of(module, looks, capture)? {
            Ok(graph) => {
                let _no_grad = tch::no_grad_guard();
                let stream = Stream::current(device)?;
                last.as_ref().map_or(Ok(()), |event| event.wait(stream))?;
                let outputs = graph.run(inputs)?;
                *last = Some(Event::record(stream)?);
                Ok(outputs)
            }
            Err(why) if self.fullgraph => Err(Error::Unsupported(why.clone())),
            Err(why) => {
                tracing::debug!(target: "tch_diffusers::compile", "{why}: the trace runs as it is");
                *uncaptured += 1;
                drop(state);
                module.forward(inputs)
            }
        }
    }

    /// What was compiled so far, `traces` being what was traced: graphs that are captured count in the place of traces, and
    /// forwards of traces that could not be captured as forwards of the model itself.
    pub(super) fn add_to(&self, traces: CompileStats) -> CompileStats {
        let state = self.lock();
        CompileStats {
            graphs: state.shelf.graphs(),
            recompilations: traces.recompilations.max(state.shelf.captures.saturating_sub(1)),
            eager_calls: traces.eager_calls + state.uncaptured,
            compile_time: traces.compile_time + state.shelf.spent,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What panicked while it was captured was not kept.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn module(factor: f64) -> Arc<TracedModule> {
        let given = Tensor::ones([2], (Kind::Float, Device::Cpu));
        let module = TracedModule::trace("Double", &[], &[("x", &given)], |x| Ok(vec![x[0].f_mul_scalar(factor)?]));
        Arc::new(module.unwrap())
    }

    fn looks(side: i64) -> Vec<Look> {
        vec![Look::of(&Tensor::ones([side], (Kind::Float, Device::Cpu))).unwrap()]
    }

    #[test]
    fn each_trace_and_shape_has_a_graph_and_the_eldest_goes() {
        let (first, second) = (module(2.0), module(3.0));
        let mut shelf = Shelf::default();
        let mut number = 0;
        let mut of = |shelf: &mut Shelf<usize>, module: &Arc<TracedModule>, side| {
            let capture = || {
                number += 1;
                Ok(number)
            };
            *shelf.of(module, looks(side), capture).unwrap().as_ref().unwrap()
        };
        assert_eq!((of(&mut shelf, &first, 1), of(&mut shelf, &first, 2), of(&mut shelf, &second, 1)), (1, 2, 3));
        assert_eq!((of(&mut shelf, &first, 1), of(&mut shelf, &second, 1)), (1, 3));
        for side in 3..=LIMIT as i64 {
            of(&mut shelf, &first, side);
        }
        assert_eq!((shelf.graphs(), shelf.captures), (LIMIT, LIMIT + 1));
        // What was used last is kept, and what was not is captured anew.
        assert_eq!((of(&mut shelf, &first, 1), of(&mut shelf, &first, 2)), (1, LIMIT + 2));
    }

    #[test]
    fn a_trace_that_was_dropped_takes_its_graphs_with_it() {
        let (kept, dropped) = (module(2.0), module(3.0));
        let mut shelf = Shelf::default();
        let graph = Arc::new(7);
        for module in [&kept, &dropped] {
            shelf.of(module, looks(1), || Ok(graph.clone())).unwrap().as_ref().unwrap();
        }
        assert_eq!((shelf.graphs(), Arc::strong_count(&graph)), (2, 3));
        drop(dropped);
        assert_eq!(shelf.graphs(), 1);
        shelf.of(&kept, looks(1), || Ok(Arc::new(8))).unwrap().as_ref().unwrap();
        assert_eq!(Arc::strong_count(&graph), 2);
        // Of other weights, wherever it lies.
        let found = shelf.of(&module(3.0), looks(1), || Ok(Arc::new(9))).unwrap().as_ref().unwrap();
        assert_eq!(**found, 9);
    }

    #[test]
    fn what_cannot_be_captured_is_asked_once_and_errors_are_not_kept() {
        let module = module(2.0);
        let mut shelf = Shelf::<usize>::default();
        let error = shelf.of(&module, looks(1), || Err(Error::OutOfMemory("full".into()))).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)) && shelf.entries.is_empty());
        for _ in 0..2 {
            let refuse = || Err(Error::Unsupported(format!("asked {} times", 1)));
            let why = shelf.of(&module, looks(1), refuse).unwrap().as_ref().unwrap_err();
            assert!(why.contains("asked 1 times"), "{why}");
            shelf.of(&module, looks(2), || Ok(1)).unwrap().as_ref().unwrap();
        }
        assert_eq!((shelf.entries.len(), shelf.graphs(), shelf.captures), (2, 1, 1));
    }

    #[test]
    fn without_a_gpu_the_trace_runs_as_it_is_or_says_why() {
        let (module, given) = (module(2.0), Tensor::ones([3], (Kind::Float, Device::Cpu)));
        let lenient = Captures::new(false);
        for times in 1..=2 {
            let made = lenient.run(Device::Cpu, &module, &[&given]).unwrap();
            assert_eq!(Vec::<f32>::try_from(&made[0]).unwrap(), [2.0; 3]);
            let stats = lenient.add_to(CompileStats { graphs: 1, eager_calls: 1, ..CompileStats::default() });
            assert_eq!((stats.graphs, stats.recompilations, stats.eager_calls), (0, 0, 1 + times));
        }
        let error = Captures::new(true).run(Device::Cpu, &module, &[&given]).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains("need a CUDA device")), "{error}");
    }
}
