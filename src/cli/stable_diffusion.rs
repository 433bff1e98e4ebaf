//! Drawing with Stable Diffusion.

use crate::interrupt;
use crate::parameters::Parameters;
use crate::source::Pictures;
use tch_diffusers::pipelines::stable_diffusion::{
    StableDiffusionCall, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
    TakesSize,
};

/// The pipeline, whose components went through the one that drew, the pictures, and which of them a safety checker
/// blackened.
type Drawn = (StableDiffusionPipeline, Vec<image::DynamicImage>, Vec<bool>);

/// The pictures.
pub(crate) fn draw(
    mut pipe: StableDiffusionPipeline,
    parameters: &Parameters,
    pictures: Option<Pictures>,
) -> anyhow::Result<Drawn> {
    parameters.only_for("StableDiffusionPipeline", &[])?;
    let prompt = parameters.prompt();
    let (pipe, output) = match pictures {
        None => {
            let call = with_size(with_arguments(pipe.call(prompt), parameters), parameters);
            let output = call.guidance_rescale(parameters.guidance_rescale).run()?;
            (pipe, output)
        }
        Some(Pictures { image, mask: None, strength }) => {
            let mut pipe = StableDiffusionImg2ImgPipeline::from_pipe(pipe);
            let output = with_arguments(pipe.call(prompt, image).strength(strength), parameters).run()?;
            (pipe.into(), output)
        }
        Some(Pictures { image, mask: Some(mask), strength }) => {
            let mut pipe = StableDiffusionInpaintPipeline::from_pipe(pipe);
            let mut call = with_arguments(pipe.call(prompt, image, mask).strength(strength), parameters);
            if let Some(pixels) = parameters.source.padding_mask_crop {
                call = call.padding_mask_crop(pixels);
            }
            let output = with_size(call, parameters).run()?;
            (pipe.into(), output)
        }
    };
    let black = output.nsfw_content_detected.unwrap_or_default();
    Ok((pipe, output.images.into_images()?, black))
}

/// What calls of all pipelines take.
fn with_arguments<'a, T>(call: StableDiffusionCall<'a, T>, parameters: &Parameters) -> StableDiffusionCall<'a, T> {
    let mut call = call
        .num_inference_steps(parameters.steps())
        .eta(parameters.eta)
        .num_images_per_prompt(parameters.num_images)
        .seed(parameters.seed)
        .callback_on_step_end(|end| {
            end.interrupt = interrupt::asked();
            Ok(())
        });
    if let Some(negative) = &parameters.negative_prompt {
        call = call.negative_prompt(parameters.for_each_prompt(negative));
    }
    if let Some(scale) = parameters.guidance_scale {
        call = call.guidance_scale(scale);
    }
    match parameters.clip_skip {
        Some(layers) => call.clip_skip(layers),
        None => call,
    }
}

fn with_size<'a, T: TakesSize>(
    mut call: StableDiffusionCall<'a, T>,
    parameters: &Parameters,
) -> StableDiffusionCall<'a, T> {
    if let Some(width) = parameters.width {
        call = call.width(width);
    }
    match parameters.height {
        Some(height) => call.height(height),
        None => call,
    }
}
