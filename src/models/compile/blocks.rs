//! Regional compilation: code of one block for all of its twins, each with its own weights.

use super::{CompileOptions, Mode, Part};
use crate::error::{Error, Result};
use crate::hooks::{COMPILED_HOOK, refuse_bypassed_hooks};
use crate::models::ModelMixin;
use crate::nn::{Hook, Next, Node, Param};
use crate::torch::{AotiModel, AotiTerms};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tch::Tensor;

/// What [`ModelMixin::compile_repeated_blocks`] did.
#[derive(Clone, Debug)]
pub struct CompiledBlocks {
    /// The paths of the blocks that run compiled.
    pub blocks: Vec<String>,
    /// Pieces of code: one for all blocks that are made alike.
    pub graphs: usize,
    /// How long compiling them took where the package was made.
    pub compile_time: Duration,
    eager_calls: Arc<AtomicUsize>,
}

impl CompiledBlocks {
    /// How often a block itself ran, because the code does not take such inputs.
    #[must_use]
    pub fn eager_calls(&self) -> usize {
        self.eager_calls.load(Ordering::Relaxed)
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
        refuse_bypassed_hooks(node)?;
        if let Some(inner) = node.hook_names().iter().skip_while(|name| *name != COMPILED_HOOK).nth(1) {
            return Err(Error::Unsupported(format!(
                "compiled code would pass over the hook `{inner}`, which was put around the block later"
            )));
        }
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
    if options.mode == Mode::Default {
        return Err(Error::Unsupported(
            "a trace holds its block's own weights, and twins cannot share it: repeated blocks need `max-autotune`"
                .into(),
        ));
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
    Ok(CompiledBlocks { blocks, graphs: package.contract().models.len(), compile_time, eager_calls })
}

/// Has the blocks run as modules again; says whether any was compiled.
pub(crate) fn disable_compiled_blocks(node: &Node) -> bool {
    node.walk().iter().filter(|module| module.remove_hook(COMPILED_HOOK)).count() > 0
}
