//! The pipeline's techniques to save memory that are not offloading.
//!
//! Mirrors `enable_*` and `disable_*` of `diffusers/pipelines/pipeline_utils.py` at 0.42.1, and of
//! `StableDiffusionMixin` as it was when pipelines still had the VAE's.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::hooks::{
    DEFAULT_SKIP_MODULES_PATTERN, SkipModules, apply_layerwise_casting, disable_layerwise_casting,
    enable_weights_prepack,
};
use crate::models::ModelMixin;
use crate::models::attention_dispatch::AttentionBackend;
use crate::models::attention_processor::{
    AttentionProcessor, AttentionSlicing, attn_processors, set_attention_backend, set_attention_slice,
    set_fused_projections, set_use_memory_efficient_attention,
};
use crate::models::unets::UNet2DConditionModel;
use crate::nn::{Module, Node, set_use_winograd, set_weights_prepack};
use tch::Kind;

impl StableDiffusionPipeline {
    /// Computes the UNet's attention in slices, which takes less memory and more time.
    ///
    /// libtorch's own attention needs no memory for the scores either on most devices: try without first.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first attention with fewer heads than a slice is to have; [`Error::Unsupported`] for a
    /// UNet without modules. Nothing is changed then.
    pub fn enable_attention_slicing(&self, slicing: AttentionSlicing) -> Result<()> {
        let tree = self.unet_tree("attention slicing")?;
        set_attention_slice(tree, Some(slicing)).map_err(|error| error.within("unet"))
    }

    /// Computes all heads of the UNet's attention at once again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn disable_attention_slicing(&self) -> Result<()> {
        set_attention_slice(self.unet_tree("attention slicing")?, None)
    }

    /// Computes the attention of UNet and VAE by libtorch's memory-efficient kernel; xFormers itself is not needed.
    ///
    /// Where that kernel is not, on the CPU or with a mask, libtorch picks one, and a warning says so once for the call.
    /// Attention slicing ends. The kernel has been run on no GPU yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    // Differs from diffusers: there, it fails without xFormers or without a GPU.
    pub fn enable_xformers_memory_efficient_attention(&self) -> Result<()> {
        let tree = self.unet_tree("memory-efficient attention")?;
        let everywhere = [tree, self.vae.node()].map(|node| set_use_memory_efficient_attention(node, true));
        if everywhere.contains(&false) {
            tracing::warn!("memory-efficient attention is a kernel of CUDA's; elsewhere libtorch picks one");
        }
        Ok(())
    }

    /// Lets libtorch pick the kernel of UNet's and VAE's attention again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn disable_xformers_memory_efficient_attention(&self) -> Result<()> {
        let tree = self.unet_tree("memory-efficient attention")?;
        for node in [tree, self.vae.node()] {
            set_use_memory_efficient_attention(node, false);
        }
        Ok(())
    }

    /// How each attention of the UNet computes, by path; nothing for a UNet without modules.
    #[must_use]
    pub fn attn_processors(&self) -> Vec<(String, AttentionProcessor)> {
        self.unet.tree().map(attn_processors).unwrap_or_default()
    }

    /// Has the attention of UNet and VAE computed by `backend`, where it is not computed in slices. A call that the backend
    /// cannot do fails, and says what is missing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    // Differs from diffusers: there, models alone have it, and those of Stable Diffusion pass it over.
    pub fn set_attention_backend(&self, backend: AttentionBackend) -> Result<()> {
        for node in [self.unet_tree("the choice of an attention backend")?, self.vae.node()] {
            set_attention_backend(node, backend);
        }
        Ok(())
    }

    /// Computes queries, keys and values as one product in the UNet's or the VAE's attention, or in both. Attention slicing
    /// ends.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn fuse_qkv_projections(&self, unet: bool, vae: bool) -> Result<()> {
        self.set_fused_projections(unet, vae, true)
    }

    /// Computes queries, keys and values one after the other again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn unfuse_qkv_projections(&self, unet: bool, vae: bool) -> Result<()> {
        self.set_fused_projections(unet, vae, false)
    }

    /// Computes the UNet's and the VAE's convolutions in float32 on the CPU with a quarter of the multiplications:
    /// [`ModelMixin::enable_winograd`](crate::models::ModelMixin::enable_winograd).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn enable_winograd(&self) -> Result<()> {
        self.set_winograd(true)
    }

    /// Computes convolutions as libtorch does again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn disable_winograd(&self) -> Result<()> {
        self.set_winograd(false)
    }

    fn set_winograd(&self, winograd: bool) -> Result<()> {
        set_use_winograd(self.unet_tree("another way of convolution")?, winograd);
        set_use_winograd(self.vae.node(), winograd);
        Ok(())
    }

    /// Has the UNet's and the VAE's convolutions on the CPU keep their weights in oneDNN's own layout, for the same bits in
    /// less time: [`ModelMixin::enable_weights_prepack`](crate::models::ModelMixin::enable_weights_prepack).
    ///
    /// # Errors
    /// As there, and [`Error::Unsupported`] for a UNet without modules.
    pub fn enable_weights_prepack(&self) -> Result<()> {
        let unet = self.unet_tree("packing weights")?;
        for (name, node) in [("unet", unet), ("vae", self.vae.node())] {
            enable_weights_prepack(node).map_err(|error| error.within(name))?;
        }
        Ok(())
    }

    /// Forgets the packed weights again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a UNet without modules.
    pub fn disable_weights_prepack(&self) -> Result<()> {
        for node in [self.unet_tree("packing weights")?, self.vae.node()] {
            set_weights_prepack(node, false);
        }
        Ok(())
    }

    fn set_fused_projections(&self, unet: bool, vae: bool, fused: bool) -> Result<()> {
        if unet {
            set_fused_projections(self.unet_tree("fusing projections")?, fused);
        }
        if vae {
            set_fused_projections(self.vae.node(), fused);
        }
        Ok(())
    }

    /// Decodes the pictures of a batch one at a time, which takes less memory: `pipe.vae.enable_slicing()`.
    pub fn enable_vae_slicing(&mut self) {
        self.vae.enable_slicing();
    }

    /// Decodes whole batches again: `pipe.vae.disable_slicing()`.
    pub fn disable_vae_slicing(&mut self) {
        self.vae.disable_slicing();
    }

    /// Decodes pictures larger than the VAE was trained for in overlapping tiles, which takes less memory:
    /// `pipe.vae.enable_tiling()`.
    pub fn enable_vae_tiling(&mut self) {
        self.vae.enable_tiling();
    }

    /// Decodes whole pictures again: `pipe.vae.disable_tiling()`.
    pub fn disable_vae_tiling(&mut self) {
        self.vae.disable_tiling();
    }

    /// Stores the UNet's weights in `storage_dtype` and computes in `compute_dtype`, or else in the UNet's own dtype: see
    /// [`ModelMixin::enable_layerwise_casting`].
    ///
    /// # Errors
    /// As there, and [`Error::Unsupported`] for a UNet without modules.
    // Differs from diffusers: there, the model alone has it, which here sits behind the trait.
    pub fn enable_layerwise_casting(&self, storage_dtype: Kind, compute_dtype: Option<Kind>) -> Result<()> {
        let tree = self.unet_tree("layerwise casting")?;
        let patterns = [&DEFAULT_SKIP_MODULES_PATTERN, UNet2DConditionModel::SKIP_LAYERWISE_CASTING_PATTERNS].concat();
        let skip = SkipModules { pattern: Some(&patterns), classes: None };
        let compute_dtype = compute_dtype.unwrap_or(self.unet.dtype());
        apply_layerwise_casting(tree, storage_dtype, compute_dtype, skip).map_err(|error| error.within("unet"))
    }

    /// Stores the UNet's weights in the dtype they are computed in again; what was rounded stays rounded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Unsupported`] for a UNet without modules.
    pub fn disable_layerwise_casting(&self) -> Result<()> {
        disable_layerwise_casting(self.unet_tree("layerwise casting")?).map_err(|error| error.within("unet"))
    }

    fn unet_tree(&self, technique: &str) -> Result<&Node> {
        let refusal = || Error::Unsupported(format!("{technique} needs a UNet with modules; this one has none"));
        self.unet.tree().ok_or_else(refusal)
    }
}
