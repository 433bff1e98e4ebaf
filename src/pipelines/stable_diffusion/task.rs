//! What a picture is drawn from.

use super::StableDiffusionPipeline;
use super::arguments::Arguments;
use super::conditioning::Conditioning;
use crate::error::Result;
use crate::image_processor::Images;
use crate::pipelines::checks::check_latents;
use crate::pipelines::image_latents::sample_latents;
use crate::torch::{Generator, NumberExt, randn_tensor};
use std::fmt::Debug;
use tch::{Device, Kind, Tensor};

/// What a call draws from, and what else it does with the pictures.
pub trait Task: Debug {
    /// Whether the VAE encodes a picture before the first step.
    const ENCODES_IMAGE: bool;

    /// Height and width of what is drawn, in pixels.
    ///
    /// # Errors
    /// If neither the arguments nor the model say.
    fn size(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<(i64, i64)>;

    /// Holds the task's own arguments to what they may be, before anything is computed.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) or [`Error::Unsupported`](crate::Error::Unsupported), saying what does not fit.
    fn check(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<()> {
        let _ = (pipe, arguments);
        Ok(())
    }

    /// The part of the run that is walked; none is all of it, from noise.
    fn strength(&self) -> Option<f64> {
        None
    }

    /// The latents to start from.
    ///
    /// # Errors
    /// If what was given does not fit, or a model fails.
    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Start>;

    /// What is done with the pictures of `size`, height and width.
    ///
    /// # Errors
    /// If they do not fit what was given.
    fn finish(&self, pipe: &StableDiffusionPipeline, size: (i64, i64), images: Images) -> Result<Images> {
        let _ = (pipe, size);
        Ok(images)
    }
}

/// A task whose call says how large the pictures are, and which noise they start from.
pub trait TakesSize: Task {}

/// What is known when a task prepares its start.
pub struct Setting<'s> {
    pub(super) pipe: &'s StableDiffusionPipeline,
    /// The latents that were given.
    pub(super) latents: Option<&'s Tensor>,
    pub(super) height: i64,
    pub(super) width: i64,
    /// How many pictures are drawn.
    pub(super) pictures: i64,
    pub(super) kind: Kind,
    pub(super) device: Device,
    /// The first timestep that is walked.
    pub(super) timestep: f64,
}

impl Setting<'_> {
    /// The latents that were given, or noise.
    pub(super) fn noise(&self, channels: i64, generators: &mut [Generator]) -> Result<Tensor> {
        let factor = self.pipe.vae_scale_factor();
        let shape = [self.pictures, channels, self.height / factor, self.width / factor];
        let Some(latents) = self.latents else {
            return randn_tensor(&shape, generators, self.kind, self.device);
        };
        check_latents(latents, &shape, self.height, self.width, self.pictures)?;
        Ok(latents.f_to_device(self.device)?)
    }

    /// Latents of pictures with values in [-1, 1], as the UNet knows them: see [`sample_latents`].
    pub(super) fn encode(&self, image: &Tensor, generators: &mut [Generator]) -> Result<Tensor> {
        let vae = &self.pipe.vae;
        sample_latents(vae, image, generators)?.times(vae.config().scaling_factor)
    }

    /// `image` with noise as it is at the first timestep.
    pub(super) fn add_noise(&self, image: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let timesteps = vec![self.timestep; self.pictures as usize];
        self.pipe.scheduler.add_noise(image, noise, &timesteps)
    }
}

/// Where the denoising begins, and what goes into each of its steps.
pub struct Start {
    pub(super) latents: Tensor,
    pub(super) conditioning: Conditioning,
}

/// Drawing from noise alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextToImage;

impl Task for TextToImage {
    const ENCODES_IMAGE: bool = false;

    fn size(&self, pipe: &StableDiffusionPipeline, arguments: &Arguments<'_>) -> Result<(i64, i64)> {
        arguments.size(pipe)
    }

    fn start(&self, setting: &Setting<'_>, generators: &mut [Generator]) -> Result<Start> {
        // Given latents stay with their call: giving them back here would puzzle the count of the call's memory.
        let noise = setting.noise(setting.pipe.unet.config().in_channels, generators)?;
        let latents = noise.times(setting.pipe.scheduler.init_noise_sigma())?;
        Ok(Start { latents, conditioning: Conditioning::None })
    }
}

impl TakesSize for TextToImage {}
