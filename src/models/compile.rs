//! What `torch.compile` gives, without Python at run time.
//!
//! Mirrors `torch.compile` and `Module.compile` of torch 2.11, and `ModelMixin.compile_repeated_blocks` of
//! `diffusers/models/modeling_utils.py` (0.42.1). Nothing is compiled here: a model is recorded as TorchScript, or runs as
//! code that AOTInductor compiled ahead of time, in Python.

mod blocks;
mod cache;
mod captured;
mod engine;
mod graphs;
mod regional;

pub use blocks::CompiledBlocks;
use blocks::params_of;
pub(crate) use blocks::{compile_repeated_blocks, disable_compiled_blocks};
pub use cache::{CacheEntry, cache_entries, cache_folder, clear_cache};
use captured::Captures;
pub use engine::Compiled;
pub(super) use engine::{Compilable, Engine, FreeSides, Given};
use graphs::{Graphs, Slot};

use super::ModelMixin;
use crate::error::{Error, Result};
use crate::torch::{AotiContract, AotiPackage, KindExt};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How a model is compiled: torch.compile's `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `default`: recorded as TorchScript, with the weights as constants. It needs no Python and no package.
    #[default]
    Default,
    /// `reduce-overhead`: the same as a CUDA graph for each size, which one call launches. For models on CUDA.
    ReduceOverhead,
    /// `max-autotune`: an AOTInductor package, which `python -m tch_diffusers.export_aoti` makes.
    MaxAutotune,
    /// `max-autotune-no-cudagraphs`: the same, as packages never are CUDA graphs.
    MaxAutotuneNoCudagraphs,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Default, Self::ReduceOverhead, Self::MaxAutotune, Self::MaxAutotuneNoCudagraphs];

    /// torch's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ReduceOverhead => "reduce-overhead",
            Self::MaxAutotune => "max-autotune",
            Self::MaxAutotuneNoCudagraphs => "max-autotune-no-cudagraphs",
        }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Argument(format!("there is no mode `{name}`: there are {known}"))
        })
    }
}

/// torch.compile's options, under its names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompileOptions {
    /// How; by a trace.
    pub mode: Mode,
    /// Whether what the compiled model does not take is an error; if not, which is the default, the model itself runs then.
    pub fullgraph: bool,
    /// Whether one piece of code is to serve all sizes. By default a trace serves the first size alone, and with the second
    /// one is made for all. A package has to be exported with `--dynamic` for it.
    pub dynamic: Option<bool>,
    /// The `.pt2` of [`Mode::MaxAutotune`]. By default one that fits is looked for in the cache.
    pub package: Option<PathBuf>,
    /// The cache's folder; [`cache_folder`] unless given.
    pub cache: Option<PathBuf>,
}

/// What a compiled model did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompileStats {
    /// Pieces of code that are kept.
    pub graphs: usize,
    /// How often something was compiled anew because of another size or other weights.
    pub recompilations: usize,
    /// Forwards that the model itself did, because the compiled one does not take such inputs.
    pub eager_calls: usize,
    /// How long compiling took, on this machine or where a package was made.
    pub compile_time: Duration,
}

/// What of a model a package is to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    /// The code of this name: `model`, or a VAE's `decoder` or `encoder`.
    Code(&'a str),
    /// The blocks that it is made of again and again.
    Blocks,
}

impl Part<'_> {
    fn is_in(self, contract: &AotiContract) -> bool {
        match self {
            Self::Code(name) => contract.models.get(name).is_some_and(|terms| terms.blocks.is_empty()),
            Self::Blocks => contract.models.values().all(|terms| !terms.blocks.is_empty()),
        }
    }

    /// Why a package without it cannot serve.
    fn missing(self, contract: &AotiContract) -> String {
        let names: Vec<_> = contract.models.keys().map(String::as_str).collect();
        match self {
            Self::Code(_) if Self::Blocks.is_in(contract) => {
                "it is of repeated blocks: pass it to compile_repeated_blocks".into()
            }
            Self::Code(name) => format!("it has no code `{name}`: it has {}", names.join(", ")),
            Self::Blocks => "it is of a whole model: export it with --repeated-blocks".into(),
        }
    }
}

impl CompileOptions {
    /// The package, which has to be for this part of `model`, and for any size where the options say so.
    fn package_for<M: ModelMixin>(&self, model: &M, part: Part<'_>) -> Result<AotiPackage> {
        let Some(path) = &self.package else {
            let folder = self.cache.clone().map_or_else(cache::cache_folder, Ok)?;
            return cache::find(model, self, part, &folder)?.ok_or_else(|| {
                let (mode, class, folder) = (self.mode.name(), M::CLASS_NAME, folder.display());
                Error::Argument(format!(
                    "`{mode}` runs a package, and {folder} has none for this {class}: make one with `python -m \
                     tch_diffusers.export_aoti`, or name one in `package`"
                ))
            });
        };
        let package = AotiPackage::load(path)?;
        self.check(model, &package, part)?;
        Ok(package)
    }

    fn check<M: ModelMixin>(&self, model: &M, package: &AotiPackage, part: Part<'_>) -> Result<()> {
        let contract = package.contract();
        let refuse = |why: String| Error::Argument(format!("{}: {why}", package.path().display()));
        check_architecture(model, contract).map_err(refuse)?;
        if !part.is_in(contract) {
            return Err(refuse(part.missing(contract)));
        }
        let is_static = |terms: &crate::torch::AotiTerms| terms.dimensions.is_empty();
        if self.dynamic == Some(true) && contract.models.values().any(is_static) {
            return Err(refuse("it was exported for one size: `dynamic` needs one made with --dynamic".into()));
        }
        Ok(())
    }

    /// Refuses modes that the device does not have.
    pub(super) fn refuse_cuda_graphs(&self, device: tch::Device) -> Result<()> {
        match self.mode {
            Mode::ReduceOverhead if !device.is_cuda() => Err(Error::Unsupported(
                "`reduce-overhead` runs a model as a CUDA graph, and this one is on the CPU: use `default` or `max-autotune`"
                    .into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Keys of a configuration that change nothing of what a model computes.
const IDLE_KEYS: [&str; 8] = [
    "sample_size",
    "dropout",
    "_name_or_path",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "force_upcast",
];

/// Why a package was made for another architecture than that of `model`, in words.
pub(super) fn check_architecture<M: ModelMixin>(model: &M, contract: &AotiContract) -> Result<(), String> {
    if contract.class != M::CLASS_NAME {
        return Err(format!("it was exported for a {}, not for a {}", contract.class, M::CLASS_NAME));
    }
    let made: M::Config = crate::configuration_utils::from_map(&contract.config).map_err(|error| error.to_string())?;
    let (made, own) = (plain::<M>(&made)?, plain::<M>(model.config())?);
    let keys = made.keys().chain(own.keys()).filter(|key| !IDLE_KEYS.contains(&key.as_str()) && !key.starts_with('_'));
    for key in keys {
        let (made, own) = (made.get(key).unwrap_or(&Value::Null), own.get(key).unwrap_or(&Value::Null));
        if made != own {
            return Err(format!(
                "it was exported for a {} whose `{key}` is {made}, and here it is {own}",
                M::CLASS_NAME
            ));
        }
    }
    let dtype = model.node().dtype().torch_name();
    if contract.dtype != dtype {
        let made = &contract.dtype;
        return Err(format!("it was exported for weights in {made}, and these are in {dtype}: cast with to(dtype)"));
    }
    Ok(())
}

/// The configuration as its keys and values.
fn plain<M: ModelMixin>(config: &M::Config) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(config).map_err(|error| error.to_string())? {
        Value::Object(map) => Ok(map),
        other => Err(format!("a configuration is an object, not {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_names_of_torch() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse::<Mode>().unwrap(), mode);
        }
        let error = "fast".parse::<Mode>().unwrap_err().to_string();
        assert!(error.contains("reduce-overhead, max-autotune, max-autotune-no-cudagraphs"), "{error}");
    }
}
