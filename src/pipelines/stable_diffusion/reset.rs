//! Switching everything off at once.

use super::StableDiffusionPipeline;
use crate::error::Result;
use crate::hooks::restore_weights;
use crate::models::attention_dispatch::AttentionBackend;
use crate::models::attention_processor::{
    set_attention_backend, set_fused_projections, set_use_memory_efficient_attention,
};
use crate::nn::{set_use_winograd, set_weights_prepack};

impl StableDiffusionPipeline {
    /// Switches every technique off, offloading, casting, slicing, tiling, memory formats, fused projections, packed
    /// weights, another way of convolution and the choice of an attention backend, and gives the models back as they were
    /// loaded: see [`restore_weights`]. The device and the dtype stay, and so do parts that were passed in.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where weights have no room; what was switched off so far stays
    /// off, and the pipeline works.
    pub fn reset(&mut self) -> Result<()> {
        self.disable_vae_slicing();
        self.disable_vae_tiling();
        self.remove_all_hooks()?;
        for (name, node) in self.nodes() {
            set_fused_projections(node, false);
            set_use_winograd(node, false);
            set_weights_prepack(node, false);
            set_attention_backend(node, AttentionBackend::default());
            set_use_memory_efficient_attention(node, false);
            restore_weights(node).map_err(|error| error.within(name))?;
        }
        Ok(())
    }
}
