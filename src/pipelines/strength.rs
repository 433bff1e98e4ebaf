//! Starting from a picture: how much of a run is walked.

use crate::error::{Error, Result};
use crate::schedulers::Scheduler;

/// Starts a run of `steps` where `strength` of it remains, and says at which of its timesteps: diffusers' `get_timesteps`.
/// Without a strength all of it is walked.
pub(super) fn begin(scheduler: &mut dyn Scheduler, steps: usize, strength: Option<f64>) -> Result<usize> {
    let Some(strength) = strength else { return Ok(0) };
    let kept = ((steps as f64 * strength) as usize).min(steps);
    // Differs from diffusers: there, image-to-image without a step fails where it adds noise.
    if kept == 0 {
        return Err(Error::Argument(format!(
            "a strength of {strength} leaves none of {steps} steps: raise `strength` or `num_inference_steps`"
        )));
    }
    let first = (steps - kept) * scheduler.order();
    scheduler.set_begin_index(first);
    Ok(first)
}

/// Holds a strength to what it may be.
pub(super) fn check_strength(strength: f64) -> Result<()> {
    if (0.0..=1.0).contains(&strength) {
        return Ok(());
    }
    Err(Error::Argument(format!("`strength` has to be between 0 and 1, but is {strength}")))
}
