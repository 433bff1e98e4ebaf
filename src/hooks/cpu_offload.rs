//! Offloading to the CPU, of whole models and of single modules.
//!
//! Mirrors what `DiffusionPipeline.enable_model_cpu_offload` and `enable_sequential_cpu_offload` of
//! `diffusers/pipelines/pipeline_utils.py` (0.42.1) do by way of `CpuOffload` and `AlignDevicesHook` of
//! `accelerate/hooks.py` (1.15).
//!
//! That weights go to a CUDA device and back compiles, but was not yet run on one.

use super::residency::{Residency, Weight};
use super::{MODEL_OFFLOADING, SEQUENTIAL_OFFLOADING, refuse_if_compiled, refuse_if_offloaded, refuse_if_prepacked};
use crate::error::Result;
use crate::nn::{BroughtWeights, Hook, Next, Node, Param};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

fn residency(name: &str, params: Vec<(String, Param)>, device: Device) -> Arc<Residency> {
    let weights = params.into_iter().map(|(_, param)| Weight::in_memory(param)).collect();
    Arc::new(Residency::new(name.into(), weights, device, false))
}

/// What weights take that come for one forward.
fn brought(residency: &Residency, kind: Kind) -> BroughtWeights {
    let (copied, mapped) = residency.bytes(kind);
    BroughtWeights { copied, mapped, begins: true, ends: true }
}

/// Model offloading: of several models, one at a time is on a device.
///
/// A model comes when its forward begins, and stays: through the steps of a denoising loop it is copied once. The
/// forward of another model sends it away.
// Differs from diffusers: there, weights are copied back from the device into memory that is allocated for them anew.
// Here they never left the CPU, and going back is dropping the device's copies. And there, a model sends away the one
// before it in the pipeline's order alone, so that a VAE that encoded first stays through the denoising.
#[derive(Debug)]
pub struct ModelOffload {
    models: Vec<(Node, Arc<Residency>)>,
}

impl ModelOffload {
    /// Attaches to `models`, each under its name in logs, in the order of their use.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) while offloading is on for one of them;
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if one lies elsewhere and the CPU has no room for it.
    pub fn new(models: &[(&str, &Node)], device: Device) -> Result<Self> {
        for (_, node) in models {
            refuse_if_offloaded(node, "model offloading cannot be switched on")?;
            refuse_if_prepacked(node, "model offloading cannot be switched on")?;
        }
        models.iter().try_for_each(|(_, node)| node.to_device(Device::Cpu))?;
        let models: Vec<_> =
            models.iter().map(|(name, node)| ((*node).clone(), residency(name, node.params(), device))).collect();
        for (node, own) in &models {
            let others =
                models.iter().map(|(_, other)| other.clone()).filter(|other| !Arc::ptr_eq(other, own)).collect();
            node.add_hook(MODEL_OFFLOADING, CpuOffload { own: own.clone(), others });
        }
        Ok(Self { models })
    }

    /// Sends away what is on the device: diffusers' `maybe_free_model_hooks`, at the end of a pipeline's call.
    pub fn free(&self) {
        self.models.iter().for_each(|(_, residency)| residency.offload());
    }

    /// Takes the hooks off again; all weights are on the CPU then.
    pub fn remove(self) {
        self.free();
        for (node, _) in self.models {
            node.remove_hook(MODEL_OFFLOADING);
        }
    }
}

#[derive(Debug)]
struct CpuOffload {
    own: Arc<Residency>,
    /// The other models, which have to leave first.
    others: Vec<Arc<Residency>>,
}

impl Hook for CpuOffload {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let was_there = self.own.is_onloaded();
        self.others.iter().for_each(|other| other.offload());
        self.own.onload()?;
        let outputs = self.own.receive(inputs).and_then(|inputs| next.run(&inputs));
        // After a failure the device is left as it was found, so that there is room to try again with less.
        if outputs.is_err() && !was_there {
            self.own.offload();
        }
        outputs
    }

    fn execution_device(&self) -> Option<Device> {
        Some(self.own.device())
    }

    fn brings(&self, kind: Kind) -> BroughtWeights {
        brought(&self.own, kind)
    }
}

/// Sequential offloading: the weights of each module at or below `node` come to `device` for the time of that module's
/// own forward. What `node` gives is where its first input was.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) while offloading is on already, or if the weights are not on the CPU.
pub fn apply_sequential_offloading(node: &Node, device: Device) -> Result<()> {
    refuse_if_offloaded(node, "sequential offloading cannot be switched on")?;
    refuse_if_prepacked(node, "sequential offloading cannot be switched on")?;
    refuse_if_compiled(node, "sequential offloading cannot be switched on", true)?;
    if node.device() != Device::Cpu {
        return Err(crate::Error::Argument(
            "sequential offloading needs the weights on the CPU: move the model there, or load it there".into(),
        ));
    }
    for module in node.walk() {
        let params = module.own_params();
        let is_root = module.path() == node.path();
        if is_root || !params.is_empty() {
            let residency = residency(module.path(), params, device);
            module.add_hook(SEQUENTIAL_OFFLOADING, AlignDevices { residency, is_root });
        }
    }
    Ok(())
}

/// Undoes [`apply_sequential_offloading`]; says whether there was anything to undo.
pub fn remove_sequential_offloading(node: &Node) -> bool {
    node.walk().iter().filter(|module| module.remove_hook(SEQUENTIAL_OFFLOADING)).count() > 0
}

#[derive(Debug)]
struct AlignDevices {
    residency: Arc<Residency>,
    is_root: bool,
}

impl Hook for AlignDevices {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        self.residency.onload()?;
        let outputs = self.residency.receive(inputs).and_then(|inputs| next.run(&inputs));
        self.residency.offload();
        let home = inputs.first().map(Tensor::device).filter(|_| self.is_root);
        match home {
            Some(home) => outputs?.iter().map(|output| Ok(output.f_to_device(home)?)).collect(),
            None => outputs,
        }
    }

    fn execution_device(&self) -> Option<Device> {
        Some(self.residency.device())
    }

    fn brings(&self, kind: Kind) -> BroughtWeights {
        brought(&self.residency, kind)
    }
}
