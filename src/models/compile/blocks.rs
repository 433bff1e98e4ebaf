//! Regional compilation: code of one block for all of its twins, each with its own weights.

use super::regional::{RecordedBlock, Recordings};
use super::{CompileOptions, CompileStats, Mode, Part};
use crate::error::{Error, Result};
use crate::hooks::{COMPILED_HOOK, refuse_bypassed_hooks, refuse_inner_hooks};
use crate::models::ModelMixin;
use crate::nn::{Hook, Next, Node, Param};
use crate::torch::{AotiModel, AotiTerms, is_tracing};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch::Tensor;

/// What [`ModelMixin::compile_repeated_blocks`] did.
#[derive(Clone, Debug)]
pub struct CompiledBlocks {
    /// The paths of the blocks that run compiled.
    pub blocks: Vec<String>,
    /// Pieces of code: one for all blocks that are made alike. Those of [`Mode::Default`] are recorded by the first forward.
    pub graphs: usize,
    /// How long compiling them took where the package was made; none for [`Mode::Default`], see [`CompiledBlocks::stats`].
    pub compile_time: Duration,
    code: Code,
}

/// What runs in the place of the blocks.
#[derive(Clone, Debug)]
enum Code {
    Package { eager_calls: Arc<AtomicUsize> },
    Recordings(Arc<Recordings>),
}

impl CompiledBlocks {
    /// How often a block itself ran, because the code does not take such inputs.
    #[must_use]
    pub fn eager_calls(&self) -> usize {
        self.stats().eager_calls
    }

    /// What was compiled so far. What a block needs for its first forward in [`Mode::Default`] is part of the time of
    /// recording it.
    #[must_use]
    pub fn stats(&self) -> CompileStats {
        match &self.code {
            Code::Recordings(recordings) => recordings.stats(),
            Code::Package { eager_calls } => CompileStats {
                graphs: self.graphs,
                recompilations: 0,
                eager_calls: eager_calls.load(Ordering::Relaxed),
                compile_time: self.compile_time,
            },
        }
    }
}

/// A block whose forward is code.
#[derive(Debug)]
struct CompiledBlock {
    code: Arc<AotiModel>,
    /// In the order in which the code takes them.
    weights: Vec<Param>,
    fullgraph: bool,
    eager_calls: Arc<AtomicUsize>,
}

impl CompiledBlock {
    fn new(code: &Arc<AotiModel>, block: &Node, fullgraph: bool, eager_calls: &Arc<AtomicUsize>) -> Result<Self> {
        let weights = params_of(block, code.terms())?;
        let named: Vec<_> = code
            .terms()
            .constants
            .iter()
            .zip(&weights)
            .map(|(known, param)| (known.name.clone(), param.get()))
            .collect();
        code.chosen(&named).map_err(|error| error.at(block.path()))?;
        Ok(Self { code: code.clone(), weights, fullgraph, eager_calls: eager_calls.clone() })
    }
}

impl Hook for CompiledBlock {
    fn around(&self, node: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        // In a trace its results would be constants.
        if is_tracing() {
            return next.run(inputs);
        }
        refuse_bypassed_hooks(node)?;
        refuse_inner_hooks(node)?;
        let contiguous = inputs.iter().map(Tensor::f_contiguous).collect::<Result<Vec<_>, _>>()?;
        let weights: Vec<_> = self.weights.iter().map(Param::get).collect();
        // Masks come as further inputs.
        let made = match inputs.len() == self.code.terms().inputs.len() {
            true => self.code.run_with(&weights, &contiguous.iter().collect::<Vec<_>>()),
            false => Err(Error::Shape("the compiled block takes no masks".into())),
        };
        match made {
            Err(error) if !self.fullgraph && matches!(error.kind(), Error::Shape(_)) => {
                tracing::debug!(target: "tch_diffusers::compile", "{}: {error}: the block itself runs", node.path());
                self.eager_calls.fetch_add(1, Ordering::Relaxed);
                next.run(inputs)
            }
            made => made,
        }
    }
}

/// The weights of a block in the order of the code's.
pub(in crate::models) fn params_of(node: &Node, terms: &AotiTerms) -> Result<Vec<Param>> {
    let prefix = if node.path().is_empty() { String::new() } else { format!("{}.", node.path()) };
    let params: std::collections::HashMap<_, _> = node.params().into_iter().collect();
    let found = terms.constants.iter().map(|constant| {
        let key = format!("{prefix}{}", constant.name);
        params
            .get(&key)
            .cloned()
            .ok_or_else(|| Error::Argument(format!("the package asks for `{key}`, which is not there")))
    });
    found.collect()
}

/// Puts code in the place of the repeated blocks of `model`.
pub(crate) fn compile_repeated_blocks<M: ModelMixin>(model: &M, options: &CompileOptions) -> Result<CompiledBlocks> {
    let node = model.node();
    if M::REPEATED_BLOCKS.is_empty() {
        return Err(Error::Unsupported(format!("a {} has no repeated blocks", M::CLASS_NAME)));
    }
    options.refuse_cuda_graphs(node.execution_device())?;
    if options.mode == Mode::ReduceOverhead {
        return Err(Error::Unsupported(
            "`reduce-overhead` is for whole models: a CUDA graph reads weights where they were, and twins have their own"
                .into(),
        ));
    }
    if options.mode == Mode::Default {
        return record_blocks(node, M::REPEATED_BLOCKS, options);
    }
    let package = options.package_for(model, Part::Blocks)?;
    let (device, eager_calls) = (node.execution_device(), Arc::default());
    let mut hooks = vec![];
    for (name, terms) in &package.contract().models {
        let code = Arc::new(package.model(name, device)?);
        for path in &terms.blocks {
            let block = node.get(path).filter(|block| block.class() == terms.class).ok_or_else(|| {
                Error::Argument(format!("the package is for a {} at `{path}`, which is not there", terms.class))
            })?;
            let hook = CompiledBlock::new(&code, &block, options.fullgraph, &eager_calls)?;
            hooks.push((block, hook));
        }
    }
    let blocks = hooks.iter().map(|(block, _)| block.path().to_string()).collect();
    for (block, hook) in hooks {
        block.add_hook(COMPILED_HOOK, hook);
    }
    let compile_time = Duration::from_secs_f64(package.contract().compile_seconds.max(0.0));
    let code = Code::Package { eager_calls };
    Ok(CompiledBlocks { blocks, graphs: package.contract().models.len(), compile_time, code })
}

/// Has the blocks of `classes` recorded by their first forwards.
fn record_blocks(node: &Node, classes: &[&str], options: &CompileOptions) -> Result<CompiledBlocks> {
    let blocks: Vec<_> = node.walk().into_iter().filter(|block| classes.contains(&block.class())).collect();
    blocks.iter().try_for_each(refuse_bypassed_hooks)?;
    let recordings = Arc::new(Recordings::new(options, &blocks)?);
    for block in &blocks {
        block.add_hook(COMPILED_HOOK, RecordedBlock::new(block, &recordings));
    }
    let graphs = recordings.kinds();
    let blocks = blocks.iter().map(|block| block.path().to_string()).collect();
    Ok(CompiledBlocks { blocks, graphs, compile_time: Duration::ZERO, code: Code::Recordings(recordings) })
}

/// Has the blocks run as modules again; says whether any was compiled.
pub(crate) fn disable_compiled_blocks(node: &Node) -> bool {
    node.walk().iter().filter(|module| module.remove_hook(COMPILED_HOOK)).count() > 0
}
