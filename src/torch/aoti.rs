//! AOTInductor packages: models compiled by Python ahead of time, run without it.
//!
//! Twin of `torch._inductor.aoti_load_package` of torch 2.11, for packages that `python -m tch_diffusers.export_aoti` made.
//! They hold code and no weights: those are the caller's own tensors, and nothing is copied.

mod contract;

pub use contract::{AotiConstant, AotiContract, AotiDimension, AotiInput, AotiSide, AotiTerms};

use super::ffi::aoti::{RawAotiModel, record};
use crate::error::{Error, Result};
use contract::Here;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};

/// Where a package says what it was made for.
const CONTRACT: &str = "extra/tch_diffusers.json";
/// The version of that.
const FORMAT: u32 = 1;

/// A `.pt2` file of compiled code that runs on this machine.
#[derive(Clone, Debug)]
pub struct AotiPackage {
    path: PathBuf,
    contract: AotiContract,
}

impl AotiPackage {
    /// Reads what the package at `path` was made for, and nothing else of it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file; [`Error::Config`] if it is no package, or one that was not made by
    /// `tch_diffusers.export_aoti`; [`Error::Unsupported`] if it was made for another version of torch, another platform or
    /// a processor that can do more.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        std::fs::metadata(path).map_err(Error::io(path))?;
        let refuse = |why: &str| Error::Config(format!("{}: {why}", path.display()));
        let text = record(path, CONTRACT).map_err(|error| match error {
            Error::Torch(text) => refuse(&text),
            other => other,
        })?;
        if text.is_empty() {
            return Err(refuse("it does not say what it was made for: only packages of tch_diffusers.export_aoti do"));
        }
        let contract = contract_of(&text).map_err(|why| refuse(&why))?;
        contract.check(path, &Here::look()?)?;
        Ok(Self { path: path.into(), contract })
    }

    /// Where the package lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was made for.
    #[must_use]
    pub fn contract(&self) -> &AotiContract {
        &self.contract
    }

    /// Loads the code `name` of the package, for weights on `device`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the package has no such code, or was made for another kind of device; [`Error::Config`] if
    /// the code asks for weights that the package does not describe; [`Error::Torch`] if libtorch cannot load it.
    pub fn model(&self, name: &str, device: Device) -> Result<AotiModel> {
        let path = &self.path;
        let terms = self.contract.models.get(name).cloned().ok_or_else(|| {
            let names: Vec<_> = self.contract.models.keys().map(String::as_str).collect();
            Error::Argument(format!("{} has no code `{name}`: it has {}", path.display(), names.join(", ")))
        })?;
        let kind = if device.is_cuda() { "cuda" } else { "cpu" };
        if kind != self.contract.device {
            let made = &self.contract.device;
            return Err(Error::Argument(format!("{} was exported for {made}, not for {device:?}", path.display())));
        }
        let names: Vec<_> = terms.constants.iter().map(|constant| constant.fqn.clone()).collect();
        let raw = RawAotiModel::load(path, name, device, &names)?;
        if let Some(unknown) = raw.constants()?.iter().find(|constant| !names.contains(constant)) {
            let path = path.display();
            return Err(Error::Config(format!("{path}: `{name}` asks for `{unknown}`, which is not described")));
        }
        let state = Mutex::new(State { raw, bound: vec![], held: None });
        Ok(AotiModel { path: path.clone(), terms, device, state })
    }
}

fn contract_of(text: &str) -> Result<AotiContract, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match value["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => (),
        format => return Err(format!("its description is of format {format:?}, and {FORMAT} is known")),
    }
    serde_path_to_error::deserialize(value).map_err(|error| format!("`{}`: {}", error.path(), error.inner()))
}

/// Where a weight was, as the code knows it.
#[derive(Debug, PartialEq)]
struct Place {
    address: usize,
    kind: Kind,
    size: Vec<i64>,
    stride: Vec<i64>,
}

impl Place {
    fn of(weight: &Tensor) -> Result<Self> {
        let address = weight.data_ptr() as usize;
        Ok(Self { address, kind: weight.f_kind()?, size: weight.size(), stride: weight.stride() })
    }
}

/// The weights of an [`AotiModel`] that were loaded, to be put back: see [`AotiModel::swap_constants`].
#[derive(Debug)]
pub struct LoadedWeights(Vec<Tensor>);

#[derive(Debug)]
struct State {
    raw: RawAotiModel,
    bound: Vec<Place>,
    held: Option<LoadedWeights>,
}

/// Compiled code of a module, without weights.
#[derive(Debug)]
pub struct AotiModel {
    path: PathBuf,
    terms: AotiTerms,
    device: Device,
    state: Mutex<State>,
}

impl AotiModel {
    /// What the code asks for.
    #[must_use]
    pub fn terms(&self) -> &AotiTerms {
        &self.terms
    }

    /// Where the weights and the inputs have to be.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Has the code compute with `weights` from now on, by their names in the checkpoint; others than those it asks for are
    /// passed over. Nothing is copied: what is written into the tensors later shows.
    ///
    /// # Errors
    /// As [`AotiModel::chosen`]; the weights of before stay then.
    pub fn load_constants(&self, weights: &[(String, Tensor)]) -> Result<()> {
        let chosen = self.chosen(weights)?;
        self.lock().held = Some(LoadedWeights(chosen));
        Ok(())
    }

    /// As [`AotiModel::load_constants`]; gives back the weights that were loaded before, to be put in place by
    /// [`AotiModel::restore_constants`].
    ///
    /// # Errors
    /// As there.
    pub fn swap_constants(&self, weights: &[(String, Tensor)]) -> Result<Option<LoadedWeights>> {
        let chosen = self.chosen(weights)?;
        Ok(self.lock().held.replace(LoadedWeights(chosen)))
    }

    /// Puts back what [`AotiModel::swap_constants`] gave.
    pub fn restore_constants(&self, weights: LoadedWeights) {
        self.lock().held = Some(weights);
    }

    /// Those of `weights` that the code asks for, in its order.
    ///
    /// # Errors
    /// [`Error::MissingWeights`] and [`Error::WeightShape`] naming all that are missing or of another shape;
    /// [`Error::Argument`] for another dtype, device or strides.
    pub fn chosen(&self, weights: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
        let named: std::collections::HashMap<_, _> =
            weights.iter().map(|(name, weight)| (name.as_str(), weight)).collect();
        let (mut chosen, mut missing) = (vec![], vec![]);
        for constant in &self.terms.constants {
            match named.get(constant.name.as_str()) {
                Some(weight) => chosen.push(weight.shallow_clone()),
                None => missing.push(constant.name.clone()),
            }
        }
        if !missing.is_empty() {
            return Err(Error::MissingWeights { file: self.path.clone(), keys: missing });
        }
        self.check_weights(&chosen)?;
        Ok(chosen)
    }

    /// Runs the code on `inputs` with the weights that were loaded.
    ///
    /// # Errors
    /// [`Error::Argument`] if none were loaded; else as [`AotiModel::run_with`].
    pub fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut state = self.lock();
        let held = state.held.as_ref().ok_or_else(|| {
            Error::Argument("the package holds no weights: give it some with load_constants first".into())
        })?;
        let held: Vec<_> = held.0.iter().map(Tensor::shallow_clone).collect();
        self.call(&mut state, &held, inputs)
    }

    /// Runs the code on `inputs` with `weights`, in the order of [`AotiTerms::constants`]. They are looked at during the
    /// call only, and are checked where they are not those of the last call.
    ///
    /// # Errors
    /// As [`AotiModel::chosen`] and [`AotiTerms::check_inputs`]; [`Error::Arity`] for another number of weights.
    pub fn run_with(&self, weights: &[Tensor], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.call(&mut self.lock(), weights, inputs)
    }

    fn call(&self, state: &mut State, weights: &[Tensor], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.terms.check_inputs(inputs, self.device)?;
        let places = weights.iter().map(Place::of).collect::<Result<Vec<_>>>()?;
        let bound = state.bound == places;
        if !bound {
            self.check_weights(weights)?;
            // What fails half-way leaves nothing bound.
            state.bound.clear();
        }
        let _no_grad = tch::no_grad_guard();
        let weights: Vec<_> = weights.iter().collect();
        let outputs = state.raw.run(&weights, bound, inputs)?;
        state.bound = places;
        Ok(outputs)
    }

    fn check_weights(&self, weights: &[Tensor]) -> Result<()> {
        let constants = &self.terms.constants;
        if weights.len() != constants.len() {
            return Err(Error::Arity { expected: constants.len(), found: weights.len() });
        }
        let pairs = || constants.iter().zip(weights);
        let mismatches: Vec<_> = pairs().filter_map(|(constant, weight)| constant.wrong_shape(weight)).collect();
        if !mismatches.is_empty() {
            return Err(Error::WeightShape { file: self.path.clone(), mismatches });
        }
        pairs().try_for_each(|(constant, weight)| constant.check(weight, self.device))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What panicked between two lines has bound nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
