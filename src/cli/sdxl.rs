//! Drawing with Stable Diffusion XL.

use crate::interrupt;
use crate::parameters::Parameters;
use crate::second::Second;
use crate::source::Pictures;
use clap::Args;
use serde::{Deserialize, Serialize};
use tch_diffusers::pipelines::stable_diffusion_xl::{StableDiffusionXLCall, StableDiffusionXLImg2ImgPipeline};
use tch_diffusers::{Error, StableDiffusionXLPipeline};

/// What SDXL alone takes. It decides the pixels, so it is kept with the picture.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "SDXL")]
#[serde(default)]
pub(crate) struct Sdxl {
    /// The size that the model is told the picture had before it was cut [default: the picture's own]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = pair)]
    original_size: Option<(i64, i64)>,
    /// Where the model is told the picture was cut from, in pixels from the left and from the top [default: 0x0]
    #[arg(long, value_name = "LEFTxTOP", value_parser = pair)]
    crops_coords: Option<(i64, i64)>,
    /// The size that the model is told the picture has [default: the picture's own]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = pair)]
    target_size: Option<(i64, i64)>,
    /// How beautiful the refiner is told the picture is [default: 6]
    #[arg(long, value_name = "SCORE")]
    aesthetic_score: Option<f64>,
}

/// `1024x768` as two numbers.
fn pair(text: &str) -> Result<(i64, i64), Error> {
    let numbers = text.split_once('x').and_then(|(first, second)| Some((first.parse().ok()?, second.parse().ok()?)));
    numbers.ok_or_else(|| Error::Argument(format!("`{text}` is not of the form 1024x768")))
}

impl Sdxl {
    /// The options, for messages.
    pub(crate) const OPTIONS: &str = "--original-size, --crops-coords, --target-size and --aesthetic-score";

    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            original_size: self.original_size.or(base.original_size),
            crops_coords: self.crops_coords.or(base.crops_coords),
            target_size: self.target_size.or(base.target_size),
            aesthetic_score: self.aesthetic_score.or(base.aesthetic_score),
        }
    }
}

/// Refuses the options that SDXL has no use for.
fn check(parameters: &Parameters, pictures: Option<&Pictures>) -> Result<(), Error> {
    let refuse = |text: &str| Err(Error::Argument(text.into()));
    match pictures {
        _ if parameters.speed.traced_unet.is_some() => {
            refuse("--traced-unet goes with Stable Diffusion 1 and 2; the model is SDXL")
        }
        Some(Pictures { mask: Some(_), .. }) => refuse("--mask goes with Stable Diffusion 1 and 2; the model is SDXL"),
        None if parameters.sdxl.aesthetic_score.is_some() => refuse("--aesthetic-score goes with --image"),
        _ => Ok(()),
    }
}

/// The pipeline, whose components went through the one that drew, and the pictures.
type Drawn = (StableDiffusionXLPipeline, Vec<image::DynamicImage>);

/// The pictures.
pub(crate) fn draw(
    mut pipe: StableDiffusionXLPipeline,
    parameters: &Parameters,
    pictures: Option<Pictures>,
) -> anyhow::Result<Drawn> {
    parameters.only_for(StableDiffusionXLPipeline::CLASS_NAME, &[Second::OPTIONS, Sdxl::OPTIONS])?;
    check(parameters, pictures.as_ref())?;
    let prompt = parameters.prompt();
    let Some(Pictures { image, strength, .. }) = pictures else {
        let mut call = with_arguments(pipe.call(prompt), parameters);
        if let Some(height) = parameters.height {
            call = call.height(height);
        }
        if let Some(width) = parameters.width {
            call = call.width(width);
        }
        let output = call.run()?;
        return Ok((pipe, output.images.into_images()?));
    };
    let mut pipe = StableDiffusionXLImg2ImgPipeline::from_pipe(pipe);
    let mut call = with_arguments(pipe.call(prompt, image).strength(strength), parameters);
    if let Some(score) = parameters.sdxl.aesthetic_score {
        call = call.aesthetic_score(score);
    }
    let output = call.run()?;
    Ok((pipe.into(), output.images.into_images()?))
}

/// What calls of both pipelines take.
fn with_arguments<'a, T>(call: StableDiffusionXLCall<'a, T>, parameters: &Parameters) -> StableDiffusionXLCall<'a, T> {
    let mut call = call
        .num_inference_steps(parameters.steps())
        .eta(parameters.eta)
        .guidance_rescale(parameters.guidance_rescale)
        .num_images_per_prompt(parameters.num_images)
        .seed(parameters.seed)
        .callback_on_step_end(|end| {
            end.interrupt = interrupt::asked();
            Ok(())
        });
    let Second { prompt_2, negative_prompt_2 } = &parameters.second;
    if let Some(prompt_2) = prompt_2 {
        call = call.prompt_2(parameters.for_each_prompt(prompt_2));
    }
    if let Some(negative) = &parameters.negative_prompt {
        call = call.negative_prompt(parameters.for_each_prompt(negative));
    }
    if let Some(negative) = negative_prompt_2 {
        call = call.negative_prompt_2(parameters.for_each_prompt(negative));
    }
    if let Some(scale) = parameters.guidance_scale {
        call = call.guidance_scale(scale);
    }
    if let Some(layers) = parameters.clip_skip {
        call = call.clip_skip(layers);
    }
    let Sdxl { original_size, crops_coords, target_size, .. } = parameters.sdxl;
    if let Some((width, height)) = original_size {
        call = call.original_size(height, width);
    }
    if let Some((left, top)) = crops_coords {
        call = call.crops_coords_top_left(top, left);
    }
    match target_size {
        Some((width, height)) => call.target_size(height, width),
        None => call,
    }
}
