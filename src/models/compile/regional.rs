//! Regional compilation without packages: a repeated block is recorded once, and what was recorded serves all its twins.
//!
//! Weights are inputs of what is recorded, found in the block at each call. So nothing is copied, and blocks follow weights
//! that are moved, swapped, or brought by group offloading.

use super::{CompileOptions, CompileStats};
use crate::error::{Error, Result};
use crate::hooks::{fills_its_memory, refuse_bypassed_hooks, refuse_inner_hooks};
use crate::models::attention_processor::{AttentionProcessor, attn_processors};
use crate::nn::{Hook, Next, Node, Param, Setting, uses_winograd, weights_prepack};
use crate::torch::{TracedModule, is_tracing};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// How many recordings are kept for each kind of block that a model has, as by torch's `recompile_limit`.
const LIMIT: usize = 8;

/// What a tensor looks like; -1 for the sides of its shape that may change.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Look {
    kind: Kind,
    device: Device,
    shape: Vec<i64>,
    order: Order,
    contiguous: bool,
}

/// How a tensor's elements lie.
#[derive(Clone, Debug, PartialEq)]
enum Order {
    /// Side by side, with the sides in this order.
    Dense(Vec<usize>),
    Strides(Vec<i64>),
}

impl Look {
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        let strides = tensor.stride();
        let order = if fills_its_memory(tensor) {
            let mut sides: Vec<_> = (0..strides.len()).collect();
            sides.sort_by_key(|side| strides.get(*side).map(|stride| -stride));
            Order::Dense(sides)
        } else {
            Order::Strides(strides)
        };
        let (kind, contiguous) = (tensor.f_kind()?, tensor.is_contiguous());
        Ok(Self { kind, device: tensor.device(), shape: tensor.size(), order, contiguous })
    }

    fn free(mut self, sides: &[usize]) -> Self {
        if matches!(self.order, Order::Dense(_)) {
            for side in sides {
                if let Some(length) = self.shape.get_mut(*side) {
                    *length = -1;
                }
            }
        }
        self
    }
}

/// What twins have in common.
#[derive(Clone, Debug, PartialEq)]
struct Build {
    class: &'static str,
    /// How its modules compute, by their paths in the block.
    settings: Vec<(String, String)>,
    /// With the number of the first weight that lies where this one does: what was recorded of one weight used twice cannot
    /// serve two.
    weights: Vec<(String, Look, usize)>,
}

#[derive(Debug)]
struct Recording {
    build: Build,
    inputs: Vec<Look>,
    /// Or why there is none.
    module: Result<Arc<TracedModule>, String>,
}

#[derive(Debug, Default)]
struct State {
    /// The last one was used last.
    recordings: Vec<Recording>,
    stats: CompileStats,
}

/// What was recorded of the repeated blocks of a model.
#[derive(Debug)]
pub(super) struct Recordings {
    options: CompileOptions,
    limit: usize,
    state: Mutex<State>,
}

/// What a block gave, and its record if that was made on the way.
enum Found {
    Module(Arc<TracedModule>),
    Outputs(Vec<Tensor>),
    /// The block itself has to run, and why.
    None(String),
}

impl Recordings {
    /// For `blocks`.
    pub(super) fn new(options: &CompileOptions, blocks: &[Node]) -> Result<Self> {
        let mut builds = vec![];
        for block in blocks {
            let build = RecordedBlock::parts(block).build()?;
            if !builds.contains(&build) {
                builds.push(build);
            }
        }
        Ok(Self { options: options.clone(), limit: LIMIT * builds.len().max(1), state: Mutex::default() })
    }

    /// How many kinds of blocks there are room for.
    pub(super) fn kinds(&self) -> usize {
        self.limit / LIMIT
    }

    pub(super) fn stats(&self) -> CompileStats {
        let state = self.lock();
        let graphs = state.recordings.iter().filter(|recording| recording.module.is_ok()).count();
        CompileStats { graphs, ..state.stats }
    }

    /// The recording for a block built like `build`, of the first of `kinds` of inputs that there is one for; made by `record`
    /// for the last of them if there is none.
    fn of(
        &self,
        build: Build,
        kinds: impl FnOnce(bool) -> Vec<Vec<Look>>,
        record: impl FnOnce() -> Result<(Vec<Tensor>, Result<TracedModule, String>)>,
    ) -> Result<Found> {
        let mut state = self.lock();
        let known = state.recordings.iter().any(|recording| recording.build == build);
        let kinds = kinds(known);
        let position = |kind: &Vec<Look>| {
            state.recordings.iter().position(|recording| recording.inputs == *kind && recording.build == build)
        };
        if let Some(index) = kinds.iter().find_map(position) {
            let recording = state.recordings.remove(index);
            let found = recording.module.clone();
            state.recordings.push(recording);
            state.stats.eager_calls += usize::from(found.is_err());
            return Ok(found.map_or_else(Found::None, Found::Module));
        }
        let start = Instant::now();
        let (outputs, module) = record()?;
        state.stats.compile_time += start.elapsed();
        state.stats.recompilations += usize::from(known);
        let refused = module.as_ref().err().cloned();
        state.stats.eager_calls += usize::from(refused.is_some());
        if state.recordings.len() == self.limit {
            drop(state.recordings.remove(0));
        }
        let inputs = kinds.into_iter().next_back().unwrap_or_default();
        state.recordings.push(Recording { build, inputs, module: module.map(Arc::new) });
        match refused {
            Some(why) if self.options.fullgraph => Ok(Found::None(why)),
            _ => Ok(Found::Outputs(outputs)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What panicked while recording has added nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block in whose place a recording runs.
#[derive(Debug)]
pub(super) struct RecordedBlock {
    parts: Parts,
    recordings: Arc<Recordings>,
}

/// What a block is built of.
#[derive(Debug)]
struct Parts {
    class: &'static str,
    settings: Vec<(String, Arc<dyn Setting>)>,
    weights: Vec<(String, Param)>,
}

impl Parts {
    /// How it is built now: settings change, and so do weights.
    fn build(&self) -> Result<Build> {
        let tensors: Vec<_> = self.weights.iter().map(|(_, param)| param.get()).collect();
        self.build_with(&tensors)
    }

    fn build_with(&self, tensors: &[Tensor]) -> Result<Build> {
        let settings = self.settings.iter().map(|(path, setting)| (path.clone(), format!("{setting:?}"))).collect();
        let addresses: Vec<_> = tensors.iter().map(|tensor| tensor.data_ptr() as usize).collect();
        let weights = self.weights.iter().zip(tensors).zip(&addresses).map(|(((name, _), tensor), address)| {
            let first = addresses.iter().position(|other| other == address).unwrap_or_default();
            Ok((name.clone(), Look::of(tensor)?, first))
        });
        Ok(Build { class: self.class, settings, weights: weights.collect::<Result<_>>()? })
    }
}

impl RecordedBlock {
    pub(super) fn new(block: &Node, recordings: &Arc<Recordings>) -> Self {
        Self { parts: Self::parts(block), recordings: recordings.clone() }
    }

    fn parts(block: &Node) -> Parts {
        Parts { class: block.class(), settings: block.settings(), weights: block.relative_params() }
    }

    /// Which recordings would do for these inputs, the last of which is to be made if there is none. `any` says that there is
    /// one for other inputs.
    fn kinds(&self, node: &Node, looks: Vec<Look>, any: bool) -> Vec<Vec<Look>> {
        let sides = free_sides(self.parts.class);
        let is_sliced = || attn_processors(node).iter().any(|(_, how)| matches!(how, AttentionProcessor::Sliced(_)));
        if self.recordings.options.dynamic == Some(false) || sides.len() < looks.len() || is_sliced() {
            return vec![looks];
        }
        let free = looks.iter().cloned().zip(sides).map(|(look, sides)| look.free(sides)).collect();
        match self.recordings.options.dynamic {
            Some(true) => vec![free],
            // The first size gets a recording of its own.
            _ if !any => vec![free, looks],
            _ => vec![looks, free],
        }
    }
}

/// The sides of each input that a recording of such a block leaves free; the others read sizes as numbers.
fn free_sides(class: &str) -> &'static [&'static [usize]] {
    match class {
        "BasicTransformerBlock" => &[&[0, 1], &[0, 1]],
        "ResnetBlock2D" => &[&[0, 2, 3], &[0]],
        _ => &[],
    }
}

/// What the block gives for `inputs`, and its record, or why there is none: what the block fails with is an error.
fn record(
    node: &Node,
    inputs: &[Tensor],
    weights: &[Tensor],
    next: Next<'_>,
) -> Result<(Vec<Tensor>, Result<TracedModule, String>)> {
    if node.walk().iter().any(uses_winograd) || weights_prepack(node).is_some() {
        let why = "it computes by Winograd, or with packed weights, which a trace leaves out";
        return Ok((next.run(inputs)?, Err(why.into())));
    }
    let known = free_sides(node.class()).len();
    if known > 0 && inputs.len() > known {
        return Ok((
            next.run(inputs)?,
            Err("it is given masks, and a recording could not tell one from another".into()),
        ));
    }
    let names: Vec<_> = (0..inputs.len() + weights.len()).map(|number| format!("tensor_{number}")).collect();
    let given: Vec<_> = names.iter().map(String::as_str).zip(inputs.iter().chain(weights)).collect();
    let mut outputs = None;
    let traced = TracedModule::trace(node.class(), &[], &given, |tensors| {
        let made = next.run(tensors.get(..inputs.len()).unwrap_or_default())?;
        outputs = Some(made.iter().map(Tensor::shallow_clone).collect());
        Ok(made)
    });
    let outputs = match (outputs, &traced) {
        (Some(outputs), _) => outputs,
        (None, Err(_)) => return Err(traced.err().unwrap_or(Error::Arity { expected: 1, found: 0 })),
        (None, Ok(_)) => return Err(Error::Arity { expected: 1, found: 0 }),
    };
    let module = traced.map_err(|error| error.to_string()).and_then(|module| match module.num_tensor_constants() {
        Ok(0) => Ok(module),
        Ok(_) => Err("it uses tensors that are neither its inputs nor its weights".into()),
        Err(error) => Err(error.to_string()),
    });
    Ok((outputs, module))
}

impl Hook for RecordedBlock {
    fn around(&self, node: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        // Whoever records the whole records this as a part of it.
        if is_tracing() {
            return next.run(inputs);
        }
        refuse_bypassed_hooks(node)?;
        refuse_inner_hooks(node)?;
        let weights: Vec<_> = self.parts.weights.iter().map(|(_, param)| param.get()).collect();
        let build = self.parts.build_with(&weights)?;
        let looks = inputs.iter().map(Look::of).collect::<Result<Vec<_>>>()?;
        let kinds = |any| self.kinds(node, looks, any);
        match self.recordings.of(build, kinds, || record(node, inputs, &weights, next))? {
            Found::Module(module) => module.forward(&inputs.iter().chain(&weights).collect::<Vec<_>>()),
            Found::Outputs(outputs) => Ok(outputs),
            Found::None(why) if self.recordings.options.fullgraph => {
                Err(Error::Unsupported(format!("the block cannot be recorded: {why}")))
            }
            Found::None(why) => {
                tracing::debug!(target: "tch_diffusers::compile", "{}: {why}: the block itself runs", node.path());
                next.run(inputs)
            }
        }
    }
}
