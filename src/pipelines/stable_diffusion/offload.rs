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

/// The models that are offloaded, in the order of their use: diffusers' `model_cpu_offload_seq`.
const MODELS: [&str; 3] = ["text_encoder", "unet", "vae"];

impl StableDiffusionPipeline {
    /// Has one model at a time on `device`, the others on the CPU: text encoder, UNet, VAE. At the end of a call all are
    /// on the CPU. Other offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the CPU has no room for what lay elsewhere; [`Error::Unsupported`] for a UNet
    /// without a module tree.
    pub fn enable_model_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        let models = self.models()?;
        let models: Vec<_> = models.iter().map(|(name, node)| (*name, node)).collect();
        self.model_offload = Some(ModelOffload::new(&models, device)?);
        Ok(())
    }

    /// Has each layer's weights on `device` for the time of the layer's own work: the least memory, and the most
    /// copying. Other offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::Argument`] if a model is not on the CPU; [`Error::Unsupported`] for a UNet without a module tree.
    // Differs from diffusers: there, a pipeline that was moved to the device is moved back to the CPU.
    pub fn enable_sequential_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        let models = self.models()?;
        for (name, node) in &models {
            if node.device() != Device::Cpu {
                return Err(Error::Argument(format!(
                    "`{name}` was moved from the CPU, where sequential offloading keeps the weights: \
                     move the pipeline to the CPU first, or load it there"
                )));
            }
        }
        models.iter().try_for_each(|(_, node)| apply_sequential_offloading(node, device))
    }

    /// Group offloading for all models but those named in `exclude_modules`, which go to the onload device for good.
    /// Other offloading is switched off first.
    ///
    /// # Errors
    /// As [`apply_group_offloading`], naming the model; [`Error::Argument`] for a name that is no model of the pipeline;
    /// [`Error::Unsupported`] for a UNet without a module tree. Then no offloading is on.
    pub fn enable_group_offload(&mut self, options: &GroupOffloading, exclude_modules: &[&str]) -> Result<()> {
        options.check()?;
        if let Some(unknown) = exclude_modules.iter().find(|name| !MODELS.contains(name)) {
            let known = MODELS.join(", ");
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
        let nodes = [Some(self.text_encoder.node()), self.unet.tree(), Some(self.vae.node())];
        for node in nodes.into_iter().flatten() {
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
        let nodes = [Some(self.text_encoder.node()), self.unet.tree(), Some(self.vae.node())];
        nodes.into_iter().flatten().try_for_each(|node| refuse_if_offloaded(node, "the pipeline cannot be moved"))
    }

    fn models(&self) -> Result<Vec<(&'static str, Node)>> {
        let unet = self.unet.tree().ok_or_else(|| {
            Error::Unsupported(
                "this pipeline's UNet has no module tree, so that its weights cannot be offloaded".into(),
            )
        })?;
        let nodes = [self.text_encoder.node(), unet, self.vae.node()];
        Ok(MODELS.into_iter().zip(nodes.map(Node::clone)).collect())
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
