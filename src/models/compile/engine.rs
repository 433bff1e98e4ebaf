//! What runs in the place of a model: traces of it or a package, and the model itself where those do not take the inputs.

use super::{Captures, CompileOptions, CompileStats, Graphs, Mode, Part, Slot, params_of};
use crate::error::{Error, Result};
use crate::hooks::{COMPILED_HOOK, MarkCompiled, refuse_bypassed_hooks};
use crate::models::ModelMixin;
use crate::nn::{Module, Param};
use crate::torch::{AotiModel, KindExt, TracedModule};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch::{Kind, Tensor};

/// The inputs of a forward that are given, by name, in the order in which a trace takes them.
#[derive(Debug)]
pub(in crate::models) struct Given<'a>(Vec<(String, &'a Tensor)>);

impl<'a> Given<'a> {
    /// Those of `inputs` that are there.
    pub(in crate::models) fn new(inputs: &[(&str, Option<&'a Tensor>)]) -> Self {
        let given = inputs.iter().filter_map(|(name, tensor)| Some(((*name).to_string(), (*tensor)?)));
        Self(given.collect())
    }

    /// These, and `list` as `stem` with its numbers.
    pub(in crate::models) fn with_list(mut self, stem: &str, list: Option<&'a [Tensor]>) -> Self {
        let list = list.unwrap_or_default().iter().enumerate();
        self.0.extend(list.map(|(number, tensor)| (format!("{stem}{number}"), tensor)));
        self
    }

    /// The input called `name`.
    pub(in crate::models) fn find(&self, name: &str) -> Option<&'a Tensor> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, tensor)| *tensor)
    }

    /// The input called `name`, which has to be there.
    pub(in crate::models) fn needed(&self, name: &str) -> Result<&'a Tensor> {
        self.find(name).ok_or_else(|| Error::Argument(format!("the model needs `{name}`")))
    }

    /// The inputs whose names begin with `stem`.
    pub(in crate::models) fn list(&self, stem: &str) -> Vec<Tensor> {
        self.0.iter().filter(|(name, _)| name.starts_with(stem)).map(|(_, tensor)| tensor.shallow_clone()).collect()
    }

    /// Whether there are no others than those called `names`.
    pub(in crate::models) fn are_among(&self, names: &[&str]) -> bool {
        self.0.iter().all(|(name, _)| names.contains(&name.as_str()))
    }

    fn tensors(&self) -> Vec<&'a Tensor> {
        self.0.iter().map(|(_, tensor)| *tensor).collect()
    }
}

/// Inputs by name, each with the sides that may change.
pub(in crate::models) type FreeSides = &'static [(&'static str, &'static [usize])];

/// A model that can run compiled: it runs on inputs by name, and knows which of their sides may change.
pub(in crate::models) trait Compilable: ModelMixin {
    /// The forward, without the hooks around the model.
    fn run_on(&self, given: &Given<'_>) -> Result<Tensor>;

    /// The sides that a trace made with these inputs leaves free; none where it would fix them all.
    fn free_sides(&self, given: &Given<'_>) -> Option<FreeSides>;

    /// An input as packages take it, where they take it in the dtype `kind`.
    fn prepared(&self, name: &str, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
        let _ = (name, kind);
        Ok(tensor.f_contiguous()?)
    }
}

/// What runs in the place of a model, which it does not own.
#[derive(Debug)]
pub(in crate::models) struct Engine {
    options: CompileOptions,
    code: Code,
    eager_calls: AtomicUsize,
}

#[derive(Debug)]
enum Code {
    /// Traces, which are captured as CUDA graphs for [`Mode::ReduceOverhead`].
    Graphs(Graphs, Option<Box<Captures>>),
    Package(Box<Package>),
}

#[derive(Debug)]
struct Package {
    code: AotiModel,
    /// In the order in which the code takes them.
    weights: Vec<Param>,
    compile_time: Duration,
}

impl Package {
    fn new<M: ModelMixin>(model: &M, options: &CompileOptions, name: &str) -> Result<Self> {
        let package = options.package_for(model, Part::Code(name))?;
        let code = package.model(name, model.node().execution_device())?;
        let weights = params_of(model.node(), code.terms())?;
        code.chosen(&model.node().state_dict())?;
        let compile_time = Duration::from_secs_f64(package.contract().compile_seconds.max(0.0));
        Ok(Self { code, weights, compile_time })
    }

    fn run<M: Compilable>(&self, model: &M, given: &Given<'_>) -> Result<Tensor> {
        let known = &self.code.terms().inputs;
        if let Some((name, _)) = given.0.iter().find(|(name, _)| known.iter().all(|input| input.name != *name)) {
            return Err(Error::Shape(format!("the package takes no `{name}`")));
        }
        let tensors = known.iter().map(|input| {
            let tensor = given.find(&input.name);
            let tensor = tensor.ok_or_else(|| Error::Argument(format!("the package needs `{}`", input.name)))?;
            model.prepared(&input.name, tensor, Kind::from_torch_name(&input.dtype)?)
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let weights: Vec<_> = self.weights.iter().map(Param::get).collect();
        only(self.code.run_with(&weights, &tensors.iter().collect::<Vec<_>>())?)
    }
}

impl Engine {
    /// What `options` ask for, over the weights of `model`; packages have the code by `name`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a mode that the device does not have, or hooks that compiled code would pass over; else as
    /// [`CompileOptions::package_for`].
    pub(in crate::models) fn new<M: Compilable>(model: &M, options: &CompileOptions, name: &str) -> Result<Self> {
        options.refuse_cuda_graphs(model.node().execution_device())?;
        refuse_bypassed_hooks(model.node())?;
        let code = match options.mode {
            Mode::Default => Code::Graphs(Graphs::default(), None),
            Mode::ReduceOverhead => Code::Graphs(Graphs::default(), Some(Box::new(Captures::new(options.fullgraph)))),
            Mode::MaxAutotune | Mode::MaxAutotuneNoCudagraphs => {
                Code::Package(Box::new(Package::new(model, options, name)?))
            }
        };
        Ok(Self { options: options.clone(), code, eager_calls: AtomicUsize::new(0) })
    }

    /// What was compiled so far.
    pub(in crate::models) fn stats(&self) -> CompileStats {
        let eager_calls = self.eager_calls.load(Ordering::Relaxed);
        match &self.code {
            Code::Graphs(graphs, captures) => {
                let stats = CompileStats { eager_calls, ..graphs.stats() };
                captures.as_ref().map_or(stats, |captures| captures.add_to(stats))
            }
            Code::Package(package) => {
                CompileStats { graphs: 1, recompilations: 0, eager_calls, compile_time: package.compile_time }
            }
        }
    }

    /// Runs on these inputs; `model` itself does where the code does not take them, unless that is to be an error.
    pub(in crate::models) fn run<M: Compilable>(&self, model: &M, given: &Given<'_>) -> Result<Tensor> {
        let made = match &self.code {
            Code::Graphs(graphs, captures) => self.run_graph(graphs, captures.as_deref(), model, given),
            Code::Package(package) => package.run(model, given),
        };
        match made {
            Err(error) if !self.options.fullgraph && matches!(error.kind(), Error::Shape(_)) => {
                tracing::debug!(target: "tch_diffusers::compile", "{error}: the model itself runs");
                self.eager_calls.fetch_add(1, Ordering::Relaxed);
                model.run_on(given)
            }
            made => made,
        }
    }

    fn run_graph<M: Compilable>(
        &self,
        graphs: &Graphs,
        captures: Option<&Captures>,
        model: &M,
        given: &Given<'_>,
    ) -> Result<Tensor> {
        let recorded = Cell::new(None);
        let graph = graphs.of(model.node(), |any| self.kinds(model, given, any), |_| trace(model, given, &recorded))?;
        // Recording is a forward: its result is the model's own.
        if let Some(output) = recorded.take() {
            return Ok(output);
        }
        only(match captures {
            Some(captures) => captures.run(model.node().device(), &graph, &given.tensors())?,
            None => graph.forward(&given.tensors())?,
        })
    }

    /// Which graphs would do for these inputs, the last of which is to be made if there is none. `any` says that there is one
    /// for other inputs.
    fn kinds<M: Compilable>(&self, model: &M, given: &Given<'_>, any: bool) -> Result<Vec<Vec<Slot>>> {
        let exact = given.0.iter().map(|(name, tensor)| Slot::exact(name, tensor)).collect::<Result<Vec<_>>>()?;
        let sides = (self.options.dynamic != Some(false)).then(|| model.free_sides(given)).flatten();
        let Some(sides) = sides else { return Ok(vec![exact]) };
        let free = exact.iter().cloned().map(|slot| match sides.iter().find(|(name, _)| *name == slot.name) {
            Some((_, sides)) => slot.free(sides),
            None => slot,
        });
        let free = free.collect();
        Ok(match self.options.dynamic {
            Some(true) => vec![free],
            // The first size gets a graph of its own.
            _ if !any => vec![free, exact],
            _ => vec![exact, free],
        })
    }
}

/// The trace, and what the model gave while it was `recorded`.
fn trace<M: Compilable>(model: &M, given: &Given<'_>, recorded: &Cell<Option<Tensor>>) -> Result<TracedModule> {
    let names: Vec<_> = given.0.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
    let run = |tensors: &[Tensor]| {
        let given = names.iter().zip(tensors).map(|((name, _), tensor)| ((*name).to_string(), tensor));
        let output = model.run_on(&Given(given.collect()))?;
        recorded.set(Some(output.shallow_clone()));
        Ok(vec![output])
    };
    TracedModule::trace(M::CLASS_NAME, &model.node().state_dict(), &names, run)?.freeze()
}

fn only(outputs: Vec<Tensor>) -> Result<Tensor> {
    outputs.into_iter().next().ok_or(Error::Arity { expected: 1, found: 0 })
}

/// A model that runs compiled, with its own weights: where those are moved, cast or replaced, the compiled code follows, or
/// says why it cannot.
///
/// Settings that change how the model computes, such as attention backends, fused projections and Winograd, are recorded by a
/// trace, and have no effect on a package.
#[derive(Debug)]
pub struct Compiled<M> {
    model: M,
    engine: Engine,
}

impl<M: Module> Compiled<M> {
    /// The model itself.
    #[must_use]
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model as it was, no longer compiled.
    #[must_use]
    pub fn into_model(self) -> M {
        self.model.node().remove_hook(COMPILED_HOOK);
        self.model
    }

    /// What was compiled so far.
    #[must_use]
    pub fn stats(&self) -> CompileStats {
        self.engine.stats()
    }

    /// # Errors
    /// As [`Engine::new`].
    pub(in crate::models) fn new(model: M, options: &CompileOptions) -> Result<Self>
    where
        M: Compilable,
    {
        let engine = Engine::new(&model, options, "model")?;
        // Innermost, and it only says that something is compiled.
        model.node().add_hook(COMPILED_HOOK, MarkCompiled);
        Ok(Self { model, engine })
    }

    /// Has `run` done inside the hooks around the model, which may replace the `outer` inputs.
    pub(in crate::models) fn inside_hooks<const I: usize>(
        &self,
        outer: [&Tensor; I],
        run: impl Fn([&Tensor; I]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        refuse_bypassed_hooks(self.model.node())?;
        let [made] = self.model.node().call(outer, |outer| Ok([run(outer)?]))?;
        Ok(made)
    }

    /// Runs on these inputs; the model itself does where the code does not take them.
    pub(in crate::models) fn run(&self, given: &Given<'_>) -> Result<Tensor>
    where
        M: Compilable,
    {
        self.engine.run(&self.model, given)
    }
}
