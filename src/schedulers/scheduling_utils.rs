//! What every scheduler offers.
//!
//! Mirrors `diffusers/schedulers/scheduling_utils.py` at 0.42.1.

use crate::configuration_utils::ConfigMap;
use crate::error::Result;
use crate::torch::Generator;
use std::fmt::Debug;
use tch::Tensor;

/// Which timesteps to walk.
#[derive(Clone, Copy, Debug)]
pub enum Timesteps<'a> {
    /// That many, spaced as the configuration says.
    Steps(usize),
    /// Just these, in descending order.
    Timesteps(&'a [f64]),
    /// Just these noise levels, in descending order.
    Sigmas(&'a [f64]),
}

/// What a step may be told beside the model's output.
#[derive(Debug, Default)]
pub struct StepOptions<'a> {
    /// DDIM's eta: 0 is deterministic, 1 is DDPM. Other schedulers pass it over.
    pub eta: f64,
    /// Where fresh noise comes from: none is libtorch's global generator, one fills the batch, or one per image.
    pub generators: &'a mut [Generator],
    /// Noise to use in place of fresh one, shaped like the sample.
    pub variance_noise: Option<&'a Tensor>,
}

/// What a step gives.
#[derive(Debug)]
pub struct SchedulerOutput {
    /// The sample at the next, less noisy timestep.
    pub prev_sample: Tensor,
    /// The noise-free sample as this step sees it, from the schedulers that tell.
    pub pred_original_sample: Option<Tensor>,
}

/// A noise schedule and a solver for it.
///
/// Everything a step reads (sigmas, timesteps, coefficients) lies on the host, so that a step never waits for a device.
pub trait Scheduler: Debug + Send + Sync {
    /// diffusers' name of the class, such as `DDIMScheduler`.
    fn class_name(&self) -> &'static str;

    /// The configuration, with the keys that only other schedulers know. What `from_config` of another one takes.
    fn config(&self) -> &ConfigMap;

    /// How many calls of the model make one step.
    fn order(&self) -> usize {
        1
    }

    /// Lays out the timesteps of a run, and starts it anew.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if there are none, too many, or if the scheduler takes no custom ones.
    fn set_timesteps(&mut self, timesteps: Timesteps<'_>) -> Result<()>;

    /// The timesteps of the run, in the order of their use; empty before [`Scheduler::set_timesteps`].
    fn timesteps(&self) -> &[f64];

    /// What pure noise of variance 1 is multiplied by to start a run.
    fn init_noise_sigma(&self) -> f64;

    /// The sample as the model wants to see it at `timestep`.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if the timestep is none of the run's.
    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor>;

    /// Goes from `timestep` to the next one.
    ///
    /// `model_output` is what the model predicted for `sample` at `timestep`; all three shapes are the same.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] before [`Scheduler::set_timesteps`], or if the timestep is none of the run's.
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        options: StepOptions<'_>,
    ) -> Result<SchedulerOutput>;

    /// `original_samples` with `noise` mixed in as it is at `timesteps`, one for each sample.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if the timesteps do not fit.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor>;

    /// A second scheduler of the same configuration, at the start of a run.
    ///
    /// # Errors
    /// If the configuration does not fit any more.
    fn fresh(&self) -> Result<Box<dyn Scheduler>>;
}
