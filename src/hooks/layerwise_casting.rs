//! Weights stored in fewer bits than are computed with.
//!
//! Mirrors `diffusers/hooks/layerwise_casting.py` at 0.42.1. The 8-bit formats are those of Micikevicius et al. 2022,
//! arXiv:2209.05433.

use super::{refuse_if_compiled, refuse_if_prepacked};
use crate::error::{Error, Result};
use crate::nn::{BroughtWeights, Hook, Next, Node, Param};
use crate::torch::KindExt;
use regex::Regex;
use std::sync::{Mutex, PoisonError};
use tch::{Kind, Tensor};

/// The name that the hooks of [`apply_layerwise_casting`] are found by.
pub const LAYERWISE_CASTING_HOOK: &str = "layerwise_casting";

/// Modules whose names these find keep their dtype, unless other patterns are given.
pub const DEFAULT_SKIP_MODULES_PATTERN: [&str; 5] = ["pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$"];

/// The classes whose weights are cast. Norms are not among them, and neither are weights outside any of these.
const LEAF_CLASSES: [&str; 9] = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
    "Embedding",
    // An `Embedding` in transformers.
    "PositionEmbedding",
];

/// Which modules keep their dtype, with all that is below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipModules<'a> {
    /// Regular expressions, looked for in a module's dotted name; [`DEFAULT_SKIP_MODULES_PATTERN`] by default.
    pub pattern: Option<&'a [&'a str]>,
    /// Names of classes, such as `Embedding`; none by default.
    pub classes: Option<&'a [&'a str]>,
}

impl SkipModules<'_> {
    /// None: all weights are cast at once around the whole module, those of norms included.
    pub const NONE: Self = Self { pattern: None, classes: None };

    fn compile(self) -> Result<Option<Skip>> {
        if self == Self::NONE {
            return Ok(None);
        }
        let compile =
            |pattern: &&str| Regex::new(pattern).map_err(|error| Error::Argument(format!("`{pattern}`: {error}")));
        let patterns = self.pattern.unwrap_or_default().iter().map(compile).collect::<Result<_>>()?;
        let classes = self.classes.unwrap_or_default().iter().map(|class| (*class).to_string()).collect();
        Ok(Some(Skip { patterns, classes }))
    }
}

impl Default for SkipModules<'_> {
    fn default() -> Self {
        Self { pattern: Some(&DEFAULT_SKIP_MODULES_PATTERN), classes: None }
    }
}

struct Skip {
    patterns: Vec<Regex>,
    classes: Vec<String>,
}

impl Skip {
    fn holds(&self, name: &str, node: &Node) -> bool {
        self.classes.iter().any(|class| class == node.class()) || self.patterns.iter().any(|it| it.is_match(name))
    }

    /// The leaves at or below `node`, which is called `name`, that are not skipped.
    fn leaves(&self, node: &Node, name: &str, found: &mut Vec<Node>) {
        if self.holds(name, node) {
            tracing::debug!("layerwise casting leaves `{name}` as it is");
        } else if LEAF_CLASSES.contains(&node.class()) {
            found.push(node.clone());
        } else {
            for (child_name, child) in node.children() {
                let name = if name.is_empty() { child_name } else { format!("{name}.{child_name}") };
                self.leaves(&child, &name, found);
            }
        }
    }
}

/// Stores the weights of the convolutions, linear maps and embeddings at or below `module` in `storage_dtype`, and casts
/// each to `compute_dtype` while it is used.
///
/// With `float8_e4m3fn` or `float8_e5m2` the weights take half the memory of bfloat16. They are rounded once, here; a
/// forward casts up and drops the copy. A module that is cast already takes the new dtypes, and one that is skipped this
/// time stays as it is.
///
/// Names are those below `module`: `^proj_in$` is a child of it.
///
/// # Errors
/// [`Error::Argument`] naming the weight that `storage_dtype` has no number for, a dtype that is not floating-point, or a
/// pattern that is no regular expression; nothing is changed then. [`Error::OutOfMemory`] where a copy has no room.
pub fn apply_layerwise_casting(
    module: &Node,
    storage_dtype: Kind,
    compute_dtype: Kind,
    skip_modules: SkipModules<'_>,
) -> Result<()> {
    for kind in [storage_dtype, compute_dtype] {
        if !kind.is_floating_point() {
            return Err(Error::Argument(format!("weights cannot be cast to {}", kind.torch_name())));
        }
    }
    refuse_if_prepacked(module, "layerwise casting cannot be switched on")?;
    refuse_if_compiled(module, "layerwise casting cannot be switched on", true)?;
    let cast: Vec<(Node, Vec<(String, Param)>)> = match skip_modules.compile()? {
        None => vec![(module.clone(), module.params())],
        Some(skip) => {
            let mut leaves = vec![];
            skip.leaves(module, "", &mut leaves);
            leaves.into_iter().map(|leaf| (leaf.clone(), leaf.params())).collect()
        }
    };
    for (key, param) in cast.iter().flat_map(|(_, params)| params) {
        check_range(&param.get(), storage_dtype).map_err(|error| error.at(key))?;
    }
    for (node, params) in cast {
        let params: Vec<_> = params.into_iter().map(|(_, param)| param).collect();
        cast_all(&params, storage_dtype)?;
        node.add_hook(LAYERWISE_CASTING_HOOK, LayerwiseCasting::new(params, compute_dtype));
    }
    Ok(())
}

/// Casts all weights at or below `module` that are stored in another dtype back to the one they are computed in, for good.
///
/// What was rounded stays rounded: load the model again for the numbers of its files.
///
/// # Errors
/// [`Error::OutOfMemory`] where a copy has no room; the weights cast so far stay cast, and the rest works on.
// Differs from diffusers: there, layerwise casting cannot be undone.
pub fn disable_layerwise_casting(module: &Node) -> Result<()> {
    for node in module.walk() {
        let Some(kind) = node.hook(LAYERWISE_CASTING_HOOK).and_then(|hook| hook.compute_dtype()) else { continue };
        // Of two hooks, one around the other, the inner one casts from what the outer one stores.
        let params: Vec<_> = node.params().into_iter().map(|(_, param)| param).collect();
        cast_all(&params, kind)?;
        node.remove_hook(LAYERWISE_CASTING_HOOK);
    }
    Ok(())
}

/// Whether some module at or below this one is stored in another dtype than it is computed in.
#[must_use]
pub fn is_layerwise_casting_active(module: &Node) -> bool {
    module.walk().iter().any(|node| node.hook(LAYERWISE_CASTING_HOOK).is_some())
}

/// Casts `module` to `kind`: weights that are stored in another dtype than they are computed in stay as they are stored,
/// and are computed in `kind` from now on.
///
/// # Errors
/// [`Error::OutOfMemory`] where a copy has no room.
// Differs from diffusers: there, `to(dtype)` casts the stored weights as well, and what they saved is lost.
pub fn set_compute_dtype(module: &Node, kind: Kind) -> Result<()> {
    let params = |params: Vec<(String, Param)>| params.into_iter().map(|(_, param)| param).collect::<Vec<_>>();
    if module.hook(LAYERWISE_CASTING_HOOK).is_some() {
        cast_all(&module.hook_weights(), kind)?;
        let hook = LayerwiseCasting::new(params(module.params()), kind);
        module.add_hook(LAYERWISE_CASTING_HOOK, hook);
        return Ok(());
    }
    cast_all(&params(module.own_params()), kind)?;
    cast_all(&module.own_hook_weights(), kind)?;
    module.children().iter().try_for_each(|(_, child)| set_compute_dtype(child, kind))
}

fn cast_all(params: &[Param], kind: Kind) -> Result<()> {
    for param in params {
        let cast = cast(&param.get(), kind)?;
        drop(param.replace(cast));
    }
    Ok(())
}

/// Floating-point numbers in `kind`, others as they are.
fn cast(weight: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(if weight.f_kind()?.is_floating_point() { weight.f_to_kind(kind)? } else { weight.shallow_clone() })
}

/// Refuses a weight with numbers beyond the largest of `kind`.
// Differs from diffusers: there, such a number becomes NaN or infinite without a word.
fn check_range(weight: &Tensor, kind: Kind) -> Result<()> {
    let Some(largest) = largest(kind) else { return Ok(()) };
    let stored = weight.f_kind()?;
    if !stored.is_floating_point() || weight.numel() == 0 || largest_of(stored) <= largest {
        return Ok(());
    }
    // The 8-bit formats have no order.
    let weight = if stored.elt_size_in_bytes() == 1 { weight.f_to_kind(Kind::Float)? } else { weight.shallow_clone() };
    let (lowest, highest) = (weight.f_min()?.f_double_value(&[])?, weight.f_max()?.f_double_value(&[])?);
    for value in [lowest, highest] {
        if value.abs() > largest {
            let name = kind.torch_name();
            return Err(Error::Argument(format!(
                "the weight holds {value}, and {name} ends at {largest}; leave the module out with a skip pattern"
            )));
        }
    }
    Ok(())
}

/// The largest finite number of a dtype that is narrower than float32's range.
fn largest(kind: Kind) -> Option<f64> {
    match kind {
        Kind::Float8e4m3fn => Some(448.0),
        Kind::Float8e4m3fnuz => Some(240.0),
        Kind::Float8e5m2 | Kind::Float8e5m2fnuz => Some(57344.0),
        Kind::Half => Some(65504.0),
        _ => None,
    }
}

fn largest_of(kind: Kind) -> f64 {
    largest(kind).unwrap_or(f64::INFINITY)
}

/// Casts weights up while a module runs.
///
/// It holds the weights' slots from the moment it is attached, so that a forward looks nothing up.
#[derive(Debug)]
pub(super) struct LayerwiseCasting {
    params: Vec<Param>,
    compute_dtype: Kind,
    /// Held while the weights are cast, so that forwards on several threads take turns.
    turn: Mutex<()>,
}

impl LayerwiseCasting {
    pub(super) fn new(params: Vec<Param>, compute_dtype: Kind) -> Self {
        Self { params, compute_dtype, turn: Mutex::new(()) }
    }
}

impl Hook for LayerwiseCasting {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let cast = |param: &Param| cast(&param.get(), self.compute_dtype);
        let computed = self.params.iter().map(cast).collect::<Result<Vec<_>>>()?;
        // Differs from diffusers: there, the copies are cast down again after each forward, and are left in place by one
        // that fails. Here what is stored is put back.
        let stored = self.params.iter().zip(computed).map(|(param, weight)| param.replace(weight)).collect();
        let _stored = Stored { params: &self.params, weights: stored };
        next.run(inputs)
    }

    fn brings(&self, kind: Kind) -> BroughtWeights {
        let weights = self.params.iter().map(Param::get);
        let cast = weights.filter(|weight| weight.kind().elt_size_in_bytes() == 1 && weight.kind().is_floating_point());
        let copied = cast.map(|weight| weight.numel() * kind.elt_size_in_bytes()).sum();
        BroughtWeights { copied, begins: true, ends: true, ..BroughtWeights::default() }
    }

    fn compute_dtype(&self) -> Option<Kind> {
        Some(self.compute_dtype)
    }
}

/// Puts the weights back when it goes, however the forward ended.
struct Stored<'a> {
    params: &'a [Param],
    weights: Vec<Tensor>,
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        for (param, weight) in self.params.iter().zip(self.weights.drain(..)) {
            drop(param.replace(weight));
        }
    }
}
