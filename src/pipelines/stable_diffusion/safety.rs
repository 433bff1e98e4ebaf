//! Looking at what was drawn before anybody sees it.
//!
//! Mirrors `run_safety_checker` of `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` at 0.42.1.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::image_processor::{Images, OutputType};
use crate::nn::Module;
use tch::{Kind, Tensor};

impl StableDiffusionPipeline {
    /// Has the safety checker look at pictures that the VAE decoded, as float values in `kind`. Those that show what they
    /// should not come back zero, and the list says which; without a checker there is no list.
    ///
    /// # Shapes
    /// `image` is `[batch, 3, height, width]` with values from -1 to 1.
    ///
    /// # Errors
    /// [`Error::Argument`] for a checker without a feature extractor; whatever the checker fails with.
    pub fn run_safety_checker(&self, image: &Tensor, kind: Kind) -> Result<(Tensor, Option<Vec<bool>>)> {
        let Some(checker) = &self.safety_checker else { return Ok((image.shallow_clone(), None)) };
        let extractor = self.feature_extractor.as_ref().ok_or_else(|| {
            Error::Argument("the safety checker has no feature extractor: set `feature_extractor` as well".into())
        })?;
        let pictures = self.image_processor.postprocess(image, OutputType::Image)?.into_images()?;
        let clip_input = extractor.preprocess(&pictures)?.f_to_device(checker.node().execution_device())?;
        let (image, has_nsfw_concept) =
            checker.forward(&clip_input.f_to_kind(kind)?, image).map_err(|error| error.within("safety_checker"))?;
        Ok((image, Some(has_nsfw_concept)))
    }

    /// What the VAE decoded as `output_type`, in which pictures of zeros stay black where `black` says so.
    pub(super) fn pictures(&self, image: &Tensor, black: Option<&[bool]>, output_type: OutputType) -> Result<Images> {
        let black = black.unwrap_or_default();
        match black.contains(&true) {
            true => self.image_processor.postprocess_but(image, black, output_type),
            false => self.image_processor.postprocess(image, output_type),
        }
    }
}
