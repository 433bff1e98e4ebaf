//! What goes together with compiled code, which runs in the place of a module and of everything below it.

use crate::error::{Error, Result};
use crate::nn::{Hook, Next, Node};
use tch::Tensor;

/// The hook around a module that runs compiled.
pub(crate) const COMPILED_HOOK: &str = "compile";

/// Says that a whole model is compiled, and does nothing else.
#[derive(Debug)]
pub(crate) struct MarkCompiled;

impl Hook for MarkCompiled {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        next.run(inputs)
    }
}

/// Refuses hooks below `node`, which code in its place would pass over.
pub(crate) fn refuse_bypassed_hooks(node: &Node) -> Result<()> {
    for child in node.children().iter().flat_map(|(_, child)| child.walk()) {
        if let Some(name) = child.hook_names().into_iter().find(|name| name != COMPILED_HOOK) {
            let path = child.path();
            return Err(Error::Unsupported(format!(
                "compiled code would pass over the hook `{name}` of `{path}`: switch off offloading by layers and casting, or \
                 fuse and unload LoRAs, first"
            )));
        }
    }
    Ok(())
}

/// Refuses hooks that were put around `node` after it was compiled, inside of [`COMPILED_HOOK`].
pub(crate) fn refuse_inner_hooks(node: &Node) -> Result<()> {
    match node.hook_names().iter().skip_while(|name| *name != COMPILED_HOOK).nth(1) {
        None => Ok(()),
        Some(inner) => Err(Error::Unsupported(format!(
            "compiled code would pass over the hook `{inner}`, which was put around the block later"
        ))),
    }
}

/// Refuses what puts hooks below compiled modules: below a model that is compiled as a whole, or, if `blocks`, below blocks
/// as well.
pub(crate) fn refuse_if_compiled(node: &Node, what: &str, blocks: bool) -> Result<()> {
    let is_compiled = |module: &Node| module.hook(COMPILED_HOOK).is_some();
    let compiled = if blocks { node.walk().iter().any(is_compiled) } else { is_compiled(node) };
    match compiled {
        false => Ok(()),
        true => Err(Error::Unsupported(format!(
            "{what}: compiled code would pass over the hooks of its layers. Model offloading goes together with it"
        ))),
    }
}
