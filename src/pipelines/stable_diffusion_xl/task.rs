//! What a picture is drawn from.

use super::StableDiffusionXLPipeline;
use super::arguments::{Arguments, cutoff, is_part};
use super::micro_conditioning::{Sizes, rows};
use crate::error::Result;
use crate::pipelines::checks::check_latents;
use crate::schedulers::Scheduler;
use crate::torch::{Generator, NumberExt, randn_tensor};
use std::fmt::Debug;
use tch::{Device, Kind, Tensor};

/// What a call draws from.
pub trait Task: Debug {
    /// Whether the VAE encodes a picture before the first step.
    const ENCODES_IMAGE: bool;

    /// Height and width of what is drawn, in pixels.
    ///
    /// # Errors
    /// If neither the arguments nor the model say.
    fn size(&self, pipe: &StableDiffusionXLPipeline, arguments: &Arguments<'_>) -> Result<(i64, i64)>;

    /// Holds the task's own arguments to what they may be, before anything is computed.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument), saying what does not fit.
    fn check(&self, pipe: &StableDiffusionXLPipeline, arguments: &Arguments<'_>) -> Result<()>;

    /// Lays the run out, and says which of its timesteps are walked.
    ///
    /// # Errors
    /// If the scheduler cannot be laid out so, or no timestep is left.
    fn timesteps(&self, arguments: &Arguments<'_>, scheduler: &mut dyn Scheduler) -> Result<Vec<f64>>;

    /// The latents to start from.
    ///
    /// # Errors
    /// If what was given does not fit, or a model fails.
    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Tensor>;

    /// Sizes and crops as the UNet is told of them, `[batch, numbers]`, and with guidance twice as many rows.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a UNet that is told another number of them.
    fn add_time_ids(&self, setting: &Setting<'_>) -> Result<Tensor>;
}

/// A task whose call says how large the pictures are.
pub trait TakesSize: Task {}

/// What is known when a task prepares its start.
pub struct Setting<'s> {
    pub(super) pipe: &'s StableDiffusionXLPipeline,
    pub(super) arguments: &'s Arguments<'s>,
    /// Height and width in pixels.
    pub(super) size: (i64, i64),
    /// How many channels the pooled text has.
    pub(super) pooled: i64,
    pub(super) kind: Kind,
    pub(super) device: Device,
    /// The first timestep that is walked.
    pub(super) timestep: f64,
}

impl Setting<'_> {
    pub(super) fn pictures(&self) -> i64 {
        self.arguments.pictures()
    }

    pub(super) fn guides(&self) -> bool {
        self.pipe.guides(self.arguments.guidance_scale)
    }

    /// The latents that were given, if any were, or their shape.
    pub(super) fn given_latents(&self) -> Result<std::result::Result<Tensor, [i64; 4]>> {
        let ((height, width), factor) = (self.size, self.pipe.vae_scale_factor());
        let shape = [self.pictures(), self.pipe.unet.config().in_channels, height / factor, width / factor];
        let Some(latents) = &self.arguments.latents else { return Ok(Err(shape)) };
        check_latents(latents, &shape, height, width, self.pictures())?;
        Ok(Ok(latents.f_to_device(self.device)?))
    }
}

/// Drawing from noise alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextToImage;

impl Task for TextToImage {
    const ENCODES_IMAGE: bool = false;

    fn size(&self, pipe: &StableDiffusionXLPipeline, arguments: &Arguments<'_>) -> Result<(i64, i64)> {
        arguments.size(pipe)
    }

    fn check(&self, _: &StableDiffusionXLPipeline, _: &Arguments<'_>) -> Result<()> {
        Ok(())
    }

    fn timesteps(&self, arguments: &Arguments<'_>, scheduler: &mut dyn Scheduler) -> Result<Vec<f64>> {
        arguments.set_timesteps(scheduler)?;
        scheduler.set_begin_index(0);
        until(scheduler, scheduler.timesteps().to_vec(), arguments.denoising_end)
    }

    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Tensor> {
        let noise = match setting.given_latents()? {
            Ok(latents) => latents,
            Err(shape) => randn_tensor(&shape, generators, setting.kind, setting.device)?,
        };
        noise.times(setting.pipe.scheduler.init_noise_sigma())
    }

    fn add_time_ids(&self, setting: &Setting<'_>) -> Result<Tensor> {
        let Setting { pipe, arguments, size, .. } = *setting;
        let ids = arguments.sizes.ids(size);
        pipe.check_added(ids.len(), setting.pooled)?;
        let negative = match arguments.negative_sizes {
            Sizes { original_size: Some(_), target_size: Some(_), .. } => arguments.negative_sizes.ids(size),
            _ => ids.clone(),
        };
        // As in diffusers, the rows of negative prompts and of pictures alternate, which is only seen where they differ.
        let both: &[&[f64]] = if setting.guides() { &[&negative, &ids] } else { &[&ids] };
        Ok(rows(both, (setting.kind, setting.device))?.f_repeat([setting.pictures(), 1])?)
    }
}

impl TakesSize for TextToImage {}

/// The first of these timesteps, up to where `denoising_end` of the noise is gone.
pub(super) fn until(
    scheduler: &dyn Scheduler,
    mut timesteps: Vec<f64>,
    denoising_end: Option<f64>,
) -> Result<Vec<f64>> {
    if let Some(end) = denoising_end.filter(is_part) {
        let cutoff = cutoff(scheduler, end)?;
        timesteps.truncate(timesteps.iter().filter(|timestep| **timestep >= cutoff).count());
    }
    Ok(timesteps)
}
