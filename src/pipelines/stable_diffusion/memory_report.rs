//! The ledger of Stable Diffusion: beside what was measured, what was estimated, and what slices and tiles save.

use super::StableDiffusionPipeline;
use super::memory_estimate::{Plan, Without};
use crate::error::Result;
use crate::models::memory::{MemoryEstimate, uses_attention_slicing};
use crate::pipelines::Parts;
use crate::pipelines::memory_report::{CallMemory, DECODE, DENOISE, MemoryReport, Saving};

/// The call that a pipeline made last.
#[derive(Debug)]
pub(super) struct LastCall {
    pub(super) plan: Plan,
    pub(super) memory: CallMemory,
}

impl StableDiffusionPipeline {
    /// What the models' weights take and how they lie, what the last call took, and what each technique that is switched
    /// on saves.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn memory_report(&self) -> Result<MemoryReport> {
        let last_call = self.last_call.as_ref().map(|last| last.memory.clone());
        let mut report = MemoryReport::new(&self.models(), last_call)?;
        report.estimate = self.last_call.as_ref().and_then(|last| self.estimate(last.plan, Without::default()).ok());
        report.savings.extend(self.savings_of_slices(report.estimate.as_ref())?);
        Ok(report)
    }

    /// What slices and tiles save, reckoned for the size of the last call.
    fn savings_of_slices(&self, estimate: Option<&MemoryEstimate>) -> Result<Vec<Saving>> {
        let mut savings = vec![];
        let Some((last, estimate)) = self.last_call.as_ref().zip(estimate) else { return Ok(savings) };
        let mut compare = |technique: &str, component: &str, stage: &str, without| -> Result<()> {
            let plain = self.estimate(last.plan, without)?;
            let peak = |estimate: &MemoryEstimate| estimate.stage(stage).map(|stage| stage.peak);
            if let Some((plain, now)) = peak(&plain).zip(peak(estimate)) {
                savings.push(Saving::new(technique, component, plain - now));
            }
            Ok(())
        };
        let none = Without::default();
        if self.unet.tree().is_some_and(uses_attention_slicing) {
            compare("attention slicing", "unet", DENOISE, Without { attention_slicing: true, ..none })?;
        }
        if self.vae.use_slicing() {
            compare("VAE slicing", "vae", DECODE, Without { vae_slicing: true, ..none })?;
        }
        if self.vae.use_tiling() {
            compare("VAE tiling", "vae", DECODE, Without { vae_tiling: true, ..none })?;
        }
        Ok(savings)
    }
}
