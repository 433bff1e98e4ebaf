//! What every pipeline offers beside its call: techniques to save memory and time, for all of its models at once.
//!
//! Mirrors `enable_*`, `disable_*`, `remove_all_hooks` and `maybe_free_model_hooks` of
//! `diffusers/pipelines/pipeline_utils.py` at 0.42.1, and `StableDiffusionMixin` as it was when pipelines still had the
//! VAE's.

use super::parts::{Parts, PipelineModel};
use crate::error::{Error, Result};
use crate::hooks::{
    DEFAULT_SKIP_MODULES_PATTERN, GroupOffloading, ModelOffload, SkipModules, apply_group_offloading,
    apply_layerwise_casting, apply_sequential_offloading, disable_layerwise_casting, enable_weights_prepack,
    refuse_if_offloaded, remove_group_offloading, remove_sequential_offloading, restore_weights,
};
use crate::loaders::lora::peft::{unfuse_lora, unload_lora};
use crate::models::attention_dispatch::AttentionBackend;
use crate::models::attention_processor::{
    AttentionProcessor, AttentionSlicing, attn_processors, set_attention_backend, set_attention_slice,
    set_fused_projections, set_use_memory_efficient_attention,
};
use crate::models::compile::CompileOptions;
use crate::nn::{Module, Node, set_use_winograd, set_weights_prepack};
use tch::{Device, Kind};

/// The techniques of all pipelines. "The denoiser" is the UNet of Stable Diffusion and the transformer of FLUX.1.
pub trait PipelineMixin: Parts {
    /// Has one model at a time on `device`, the others on the CPU, in the order of
    /// [`Parts::models`]. At the end of a call all are on the CPU. A safety checker goes to `device` for good. Other
    /// offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the CPU has no room for what lay elsewhere; [`Error::Unsupported`] for a denoiser
    /// without modules.
    fn enable_model_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        self.denoiser("offloading")?;
        let (staying, models): (Vec<_>, Vec<_>) = self.models().into_iter().partition(|model| model.stays);
        let models: Vec<_> = models.iter().map(|model| (model.name, &model.node)).collect();
        *self.model_offload_mut() = Some(ModelOffload::new(&models, device)?);
        to_device(&staying, device)
    }

    /// Has each layer's weights on `device` for the time of the layer's own work: the least memory, and the most
    /// copying. A safety checker goes to `device` for good. Other offloading is switched off first.
    ///
    /// On a CUDA device this was not yet run; with [`Device::Cpu`] it changes nothing but the log.
    ///
    /// # Errors
    /// [`Error::Argument`] if a model is not on the CPU; [`Error::Unsupported`] for a denoiser without modules.
    // Differs from diffusers: there, a pipeline that was moved to the device is moved back to the CPU.
    fn enable_sequential_cpu_offload(&mut self, device: Device) -> Result<()> {
        self.remove_all_hooks()?;
        self.denoiser("offloading")?;
        let (staying, models): (Vec<_>, Vec<_>) = self.models().into_iter().partition(|model| model.stays);
        if let Some(PipelineModel { name, .. }) = models.iter().find(|model| model.node.device() != Device::Cpu) {
            return Err(Error::Argument(format!(
                "`{name}` was moved from the CPU, where sequential offloading keeps the weights: \
                 move the pipeline to the CPU first, or load it there"
            )));
        }
        models.iter().try_for_each(|model| apply_sequential_offloading(&model.node, device))?;
        to_device(&staying, device)
    }

    /// Group offloading for all models but those named in `exclude_modules`, which go to the onload device for good.
    /// Other offloading is switched off first.
    ///
    /// # Errors
    /// As [`apply_group_offloading`], naming the model; [`Error::Argument`] for a name that is no model of the pipeline;
    /// [`Error::Unsupported`] for a denoiser without modules. Then no offloading is on.
    fn enable_group_offload(&mut self, options: &GroupOffloading, exclude_modules: &[&str]) -> Result<()> {
        options.check()?;
        let (denoiser, models) = (self.denoiser("offloading"), self.models());
        let known: Vec<_> = models.iter().map(|model| model.name).collect();
        if let (Some(unknown), Ok(_)) = (exclude_modules.iter().find(|name| !known.contains(name)), &denoiser) {
            let known = known.join(", ");
            return Err(Error::Argument(format!("the pipeline has no model `{unknown}`: it has {known}")));
        }
        self.remove_all_hooks()?;
        denoiser?;
        let is_offloaded = |model: &PipelineModel| !exclude_modules.contains(&model.name);
        let whole = models.iter().filter(|model| is_offloaded(model)).map(PipelineModel::bytes).sum();
        let applied = models.iter().try_for_each(|model| {
            match is_offloaded(model) {
                false => model.node.to_device(options.onload_device),
                true => {
                    let options = options.clone().with_share_of_limit(model.bytes(), whole);
                    apply_group_offloading(&model.node, &options.or_block_modules(model.block_modules))
                }
            }
            .map_err(|error| error.within(model.name))
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
    fn remove_all_hooks(&mut self) -> Result<()> {
        if let Some(offload) = self.model_offload_mut().take() {
            offload.remove();
        }
        for model in self.models() {
            remove_group_offloading(&model.node)?;
            remove_sequential_offloading(&model.node);
        }
        Ok(())
    }

    /// Sends the model that is on the device away, if model offloading is on. Each call ends with it.
    fn maybe_free_model_hooks(&self) {
        if let Some(offload) = self.model_offload() {
            offload.free();
        }
    }

    /// Computes the denoiser's attention in slices, which takes less memory and more time. FLUX.1's transformer has no
    /// attention that can be sliced: there, as in diffusers, nothing changes.
    ///
    /// libtorch's own attention needs no memory for the scores either on most devices: try without first.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first attention with fewer heads than a slice is to have; [`Error::Unsupported`] for a
    /// denoiser without modules. Nothing is changed then.
    fn enable_attention_slicing(&self, slicing: AttentionSlicing) -> Result<()> {
        let PipelineModel { name, node, .. } = self.denoiser("attention slicing")?;
        set_attention_slice(&node, Some(slicing)).map_err(|error| error.within(name))
    }

    /// Computes all heads of the denoiser's attention at once again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn disable_attention_slicing(&self) -> Result<()> {
        set_attention_slice(&self.denoiser("attention slicing")?.node, None)
    }

    /// Computes the attention of denoiser and VAE by libtorch's memory-efficient kernel; xFormers itself is not needed.
    ///
    /// Where that kernel is not, on the CPU or with a mask, libtorch picks one, and a warning says so once for the call.
    /// Attention slicing ends. The kernel has been run on no GPU yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    // Differs from diffusers: there, it fails without xFormers or without a GPU.
    fn enable_xformers_memory_efficient_attention(&self) -> Result<()> {
        let nodes = denoiser_and_vae(self, "memory-efficient attention")?;
        if nodes.map(|node| set_use_memory_efficient_attention(&node, true)).contains(&false) {
            tracing::warn!("memory-efficient attention is a kernel of CUDA's; elsewhere libtorch picks one");
        }
        Ok(())
    }

    /// Lets libtorch pick the kernel of denoiser's and VAE's attention again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn disable_xformers_memory_efficient_attention(&self) -> Result<()> {
        for node in denoiser_and_vae(self, "memory-efficient attention")? {
            set_use_memory_efficient_attention(&node, false);
        }
        Ok(())
    }

    /// How each attention of the denoiser computes, by path; nothing for one without modules.
    #[must_use]
    fn attn_processors(&self) -> Vec<(String, AttentionProcessor)> {
        self.denoiser("").map(|model| attn_processors(&model.node)).unwrap_or_default()
    }

    /// Has the attention of denoiser and VAE computed by `backend`, where it is not computed in slices. A call that the
    /// backend cannot do fails, and says what is missing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    // Differs from diffusers: there, models alone have it, and those of Stable Diffusion pass it over.
    fn set_attention_backend(&self, backend: AttentionBackend) -> Result<()> {
        for node in denoiser_and_vae(self, "the choice of an attention backend")? {
            set_attention_backend(&node, backend);
        }
        Ok(())
    }

    /// Computes queries, keys and values as one product in the denoiser's or the VAE's attention, or in both. Attention
    /// slicing ends.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn fuse_qkv_projections(&self, denoiser: bool, vae: bool) -> Result<()> {
        fuse(self, [denoiser, vae], true)
    }

    /// Computes queries, keys and values one after the other again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn unfuse_qkv_projections(&self, denoiser: bool, vae: bool) -> Result<()> {
        fuse(self, [denoiser, vae], false)
    }

    /// Computes the denoiser's and the VAE's convolutions in float32 on the CPU with a quarter of the multiplications:
    /// [`ModelMixin::enable_winograd`](crate::models::ModelMixin::enable_winograd).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn enable_winograd(&self) -> Result<()> {
        let nodes = denoiser_and_vae(self, "another way of convolution")?;
        nodes.iter().for_each(|node| set_use_winograd(node, true));
        Ok(())
    }

    /// Computes convolutions as libtorch does again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn disable_winograd(&self) -> Result<()> {
        let nodes = denoiser_and_vae(self, "another way of convolution")?;
        nodes.iter().for_each(|node| set_use_winograd(node, false));
        Ok(())
    }

    /// Has the denoiser's and the VAE's convolutions on the CPU keep their weights in oneDNN's own layout, for the same bits
    /// in less time: [`ModelMixin::enable_weights_prepack`](crate::models::ModelMixin::enable_weights_prepack).
    ///
    /// # Errors
    /// As there, and [`Error::Unsupported`] for a denoiser without modules.
    fn enable_weights_prepack(&self) -> Result<()> {
        let PipelineModel { name, node, .. } = self.denoiser("packing weights")?;
        enable_weights_prepack(&node).map_err(|error| error.within(name))?;
        enable_weights_prepack(self.autoencoder().node()).map_err(|error| error.within("vae"))
    }

    /// Forgets the packed weights again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a denoiser without modules.
    fn disable_weights_prepack(&self) -> Result<()> {
        let nodes = denoiser_and_vae(self, "packing weights")?;
        nodes.iter().for_each(|node| set_weights_prepack(node, false));
        Ok(())
    }

    /// Decodes the pictures of a batch one at a time, which takes less memory: `pipe.vae.enable_slicing()`.
    fn enable_vae_slicing(&mut self) {
        self.autoencoder_mut().enable_slicing();
    }

    /// Decodes whole batches again: `pipe.vae.disable_slicing()`.
    fn disable_vae_slicing(&mut self) {
        self.autoencoder_mut().disable_slicing();
    }

    /// Has the VAE's decoder run compiled: [`AutoencoderKL::compile_decoder`](crate::AutoencoderKL::compile_decoder).
    ///
    /// # Errors
    /// As there.
    fn compile_vae(&mut self, options: &CompileOptions) -> Result<()> {
        self.autoencoder_mut().compile_decoder(options).map_err(|error| error.within("vae"))
    }

    /// Decodes pictures larger than the VAE was trained for in overlapping tiles, which takes less memory:
    /// `pipe.vae.enable_tiling()`.
    fn enable_vae_tiling(&mut self) {
        self.autoencoder_mut().enable_tiling();
    }

    /// Decodes whole pictures again: `pipe.vae.disable_tiling()`.
    fn disable_vae_tiling(&mut self) {
        self.autoencoder_mut().disable_tiling();
    }

    /// Stores the denoiser's weights in `storage_dtype` and computes in `compute_dtype`, or else in the denoiser's own dtype:
    /// see [`ModelMixin::enable_layerwise_casting`](crate::models::ModelMixin::enable_layerwise_casting).
    ///
    /// # Errors
    /// As there, and [`Error::Unsupported`] for a denoiser without modules.
    // Differs from diffusers: there, the model alone has it.
    fn enable_layerwise_casting(&self, storage_dtype: Kind, compute_dtype: Option<Kind>) -> Result<()> {
        let PipelineModel { name, node, skip_casting, .. } = self.denoiser("layerwise casting")?;
        let patterns = [&DEFAULT_SKIP_MODULES_PATTERN, skip_casting].concat();
        let skip = SkipModules { pattern: Some(&patterns), classes: None };
        let compute_dtype = compute_dtype.unwrap_or(node.dtype());
        apply_layerwise_casting(&node, storage_dtype, compute_dtype, skip).map_err(|error| error.within(name))
    }

    /// Stores the denoiser's weights in the dtype they are computed in again; what was rounded stays rounded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Unsupported`] for a denoiser without modules.
    fn disable_layerwise_casting(&self) -> Result<()> {
        let PipelineModel { name, node, .. } = self.denoiser("layerwise casting")?;
        disable_layerwise_casting(&node).map_err(|error| error.within(name))
    }

    /// Switches every technique off, offloading, casting, slicing, tiling, memory formats, fused projections, packed
    /// weights, LoRAs, another way of convolution and the choice of an attention backend, and gives the models back as they
    /// were loaded: see [`restore_weights`]. The device and the dtype stay, and so do parts that were passed in, and LoRAs
    /// that were unloaded while they were fused.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where weights have no room; what was switched off so far stays off, and the pipeline works.
    fn reset(&mut self) -> Result<()> {
        self.disable_vae_slicing();
        self.disable_vae_tiling();
        self.remove_all_hooks()?;
        for PipelineModel { name, node, .. } in self.models() {
            set_fused_projections(&node, false);
            set_use_winograd(&node, false);
            set_weights_prepack(&node, false);
            set_attention_backend(&node, AttentionBackend::default());
            set_use_memory_efficient_attention(&node, false);
            unfuse_lora(&node).map_err(|error| error.within(name))?;
            unload_lora(&node);
            restore_weights(&node).map_err(|error| error.within(name))?;
        }
        Ok(())
    }
}

impl<P: Parts + ?Sized> PipelineMixin for P {}

fn denoiser_and_vae<P: Parts + ?Sized>(pipe: &P, technique: &str) -> Result<[Node; 2]> {
    Ok([pipe.denoiser(technique)?.node, pipe.autoencoder().node().clone()])
}

/// Fuses the projections of the denoiser, of the VAE, or of both, or does them one by one again.
fn fuse<P: Parts + ?Sized>(pipe: &P, [denoiser, vae]: [bool; 2], fused: bool) -> Result<()> {
    if denoiser {
        set_fused_projections(&pipe.denoiser("fusing projections")?.node, fused);
    }
    if vae {
        set_fused_projections(pipe.autoencoder().node(), fused);
    }
    Ok(())
}

fn to_device(models: &[PipelineModel], device: Device) -> Result<()> {
    models.iter().try_for_each(|model| model.node.to_device(device).map_err(|error| error.within(model.name)))
}

/// What is offloaded cannot be moved: the hooks would take it where it belongs once more.
pub(super) fn refuse_to_move(pipe: &impl Parts) -> Result<()> {
    pipe.models().iter().try_for_each(|model| refuse_if_offloaded(&model.node, "the pipeline cannot be moved"))
}
