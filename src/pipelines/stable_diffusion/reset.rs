//! Switching everything off at once.

use super::StableDiffusionPipeline;
use crate::error::Result;
use crate::hooks::restore_weights;
use crate::models::attention_processor::set_use_memory_efficient_attention;
use crate::nn::Module;

impl StableDiffusionPipeline {
    /// Switches every technique off that saves memory, offloading, casting, slicing, tiling and memory formats, and gives
    /// the models back as they were loaded: see [`restore_weights`]. The device and the dtype stay.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where weights have no room; what was switched off so far stays
    /// off, and the pipeline works.
    pub fn reset(&mut self) -> Result<()> {
        self.disable_vae_slicing();
        self.disable_vae_tiling();
        self.remove_all_hooks()?;
        let models = [
            ("text_encoder", Some(self.text_encoder.node())),
            ("unet", self.unet.tree()),
            ("vae", Some(self.vae.node())),
        ];
        for (name, node) in models {
            let Some(node) = node else { continue };
            set_use_memory_efficient_attention(node, false);
            restore_weights(node).map_err(|error| error.within(name))?;
        }
        Ok(())
    }
}
