//! Offloading, for all models of the pipeline.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::hooks::{
    GroupOffloading, ModelOffload, apply_group_offloading, apply_sequential_offloading, refuse_if_offloaded,
    remove_group_offloading, remove_sequential_offloading,
};
use crate::models::ModelMixin;
use crate::nn::{Module, Node};
use tch::Device;

/// What stays on the device, though others are offloaded: diffusers' `_exclude_from_cpu_offload`.
const EXCLUDED: &str = "safety_checker";

impl StableDiffusionPipeline {
    /// Has one model at a time on `device`, the others on the CPU: text encoder, UNet, VAE. At the end of a call all are
    /// on the CPU. A safety checker goes to `device` for good. Other offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the CPU has no room for what lay elsewhere; [`Error::Unsupported`] for a UNet
    /// without a module tree.
    pub fn enable_model_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        let models = self.models()?;
        let models: Vec<_> =
            models.iter().filter(|(name, _)| *name != EXCLUDED).map(|(name, node)| (*name, node)).collect();
        self.model_offload = Some(ModelOffload::new(&models, device)?);
        self.safety_checker_to(device)
    }

    /// Has each layer's weights on `device` for the time of the layer's own work: the least memory, and the most
    /// copying. A safety checker goes to `device` for good. Other offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::Argument`] if a model is not on the CPU; [`Error::Unsupported`] for a UNet without a module tree.
    // Differs from diffusers: there, a pipeline that was moved to the device is moved back to the CPU.
    pub fn enable_sequential_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        let models = self.models()?;
        let models = models.iter().filter(|(name, _)| *name != EXCLUDED);
        for (name, node) in models.clone() {
            if node.device() != Device::Cpu {
                return Err(Error::Argument(format!(
                    "`{name}` was moved from the CPU, where sequential offloading keeps the weights: \
                     move the pipeline to the CPU first, or load it there"
                )));
            }
        }
        for (_, node) in models {
            apply_sequential_offloading(node, device)?;
        }
        self.safety_checker_to(device)
    }

    fn safety_checker_to(&self, device: Device) -> Result<()> {
        let Some(checker) = &self.safety_checker else { return Ok(()) };
        checker.node().to_device(device).map_err(|error| error.within(EXCLUDED))
    }

    /// Group offloading for all models but those named in `exclude_modules`, which go to the onload device for good.
    /// Other offloading is switched off first.
    ///
    /// # Errors
    /// As [`apply_group_offloading`], naming the model; [`Error::Argument`] for a name that is no model of the pipeline;
    /// [`Error::Unsupported`] for a UNet without a module tree. Then no offloading is on.
    pub fn enable_group_offload(&mut self, options: &GroupOffloading, exclude_modules: &[&str]) -> Result<()> {
        options.check()?;
        let known: Vec<_> = self.models()?.into_iter().map(|(name, _)| name).collect();
        if let Some(unknown) = exclude_modules.iter().find(|name| !known.contains(name)) {
            let known = known.join(", ");
            return Err(Error::Argument(format!("the pipeline has no model `{unknown}`: it has {known}")));
        }
        self.remove_all_hooks()?;
        let models = self.models()?;
        let offloaded = models.iter().filter(|(name, _)| !exclude_modules.contains(name));
        let whole = offloaded.map(|(_, node)| bytes(node)).sum();
        let applied = models.into_iter().try_for_each(|(name, node)| {
            let options = &options.clone().with_share_of_limit(bytes(&node), whole);
            match (exclude_modules.contains(&name), name) {
                (true, _) => node.to_device(options.onload_device),
                (false, "vae") => self.vae.enable_group_offload(options),
                (false, _) => apply_group_offloading(&node, options),
            }
            .map_err(|error| error.within(name))
        });
        if applied.is_err() {
            self.remove_all_hooks()?;
        }
        applied
    }

    /// Switches all offloading off. The weights are then where they waited, those left to files in memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where weights that were left to files have no room.
    pub fn remove_all_hooks(&mut self) -> Result<()> {
        if let Some(offload) = self.model_offload.take() {
            offload.remove();
        }
        for (_, node) in self.nodes() {
            remove_group_offloading(node)?;
            remove_sequential_offloading(node);
        }
        Ok(())
    }

    /// Sends the model that is on the device away, if model offloading is on. Each call ends with it.
    pub fn maybe_free_model_hooks(&self) {
        if let Some(offload) = &self.model_offload {
            offload.free();
        }
    }

    /// What is offloaded cannot be moved: the hooks would take it where it belongs once more.
    pub(super) fn refuse_to_move(&self) -> Result<()> {
        self.nodes().into_iter().try_for_each(|(_, node)| refuse_if_offloaded(node, "the pipeline cannot be moved"))
    }

    fn models(&self) -> Result<Vec<(&'static str, Node)>> {
        if self.unet.tree().is_none() {
            return Err(Error::Unsupported(
                "this pipeline's UNet has no module tree, so that its weights cannot be offloaded".into(),
            ));
        }
        Ok(self.nodes().into_iter().map(|(name, node)| (name, node.clone())).collect())
    }
}

/// The length of all weights at or below `node`.
fn bytes(node: &Node) -> usize {
    node.params()
        .iter()
        .map(|(_, param)| param.get())
        .map(|weight| weight.numel() * weight.kind().elt_size_in_bytes())
        .sum()
}
