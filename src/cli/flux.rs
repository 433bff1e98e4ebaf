//! Drawing with FLUX.1.

use crate::interrupt;
use crate::parameters::Parameters;
use crate::second::Second;
use clap::Args;
use serde::{Deserialize, Serialize};
use tch_diffusers::{Error, FluxPipeline};

/// What FLUX.1 alone takes. It decides the pixels, so it is kept with the picture.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "FLUX.1")]
#[serde(default)]
pub(crate) struct Flux {
    /// How much --prompt counts against --negative-prompt, by a second prediction in each step [default: 1, which is without]
    #[arg(long, value_name = "SCALE")]
    true_cfg_scale: Option<f64>,
    /// How many tokens of the prompt the second text encoder reads, at most 512 [default: 512]
    #[arg(long, value_name = "TOKENS")]
    max_sequence_length: Option<usize>,
}

impl Flux {
    /// The options, for messages.
    pub(crate) const OPTIONS: &str = "--true-cfg-scale and --max-sequence-length";

    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            true_cfg_scale: self.true_cfg_scale.or(base.true_cfg_scale),
            max_sequence_length: self.max_sequence_length.or(base.max_sequence_length),
        }
    }
}

/// Refuses the options that FLUX.1 has no use for.
fn check(parameters: &Parameters) -> Result<(), Error> {
    let given = [
        (parameters.guidance_rescale != 0.0, "--guidance-rescale"),
        (parameters.eta != 0.0, "--eta"),
        (parameters.clip_skip.is_some(), "--clip-skip"),
        (parameters.source.is_given(), "--image"),
        (parameters.speed.traced_unet.is_some(), "--traced-unet"),
    ];
    match given.iter().find(|(given, _)| *given) {
        Some((_, option)) => Err(Error::Argument(format!("{option} goes with Stable Diffusion; the model is FLUX.1"))),
        None => Ok(()),
    }
}

/// The pictures.
pub(crate) fn draw(pipe: &mut FluxPipeline, parameters: &Parameters) -> anyhow::Result<Vec<image::DynamicImage>> {
    parameters.only_for(FluxPipeline::CLASS_NAME, &[Second::OPTIONS, Flux::OPTIONS])?;
    check(parameters)?;
    let mut call = pipe.call(parameters.prompt()).num_images_per_prompt(parameters.num_images).seed(parameters.seed);
    call = call.callback_on_step_end(|end| {
        end.interrupt = interrupt::asked();
        Ok(())
    });
    if let Some(steps) = parameters.steps {
        call = call.num_inference_steps(steps);
    }
    if let Some(scale) = parameters.guidance_scale {
        call = call.guidance_scale(scale);
    }
    if let Some(negative) = &parameters.negative_prompt {
        call = call.negative_prompt(parameters.for_each_prompt(negative));
    }
    if let Some(height) = parameters.height {
        call = call.height(height);
    }
    if let Some(width) = parameters.width {
        call = call.width(width);
    }
    let Second { prompt_2, negative_prompt_2 } = &parameters.second;
    if let Some(prompt_2) = prompt_2 {
        call = call.prompt_2(parameters.for_each_prompt(prompt_2));
    }
    if let Some(negative_prompt_2) = negative_prompt_2 {
        call = call.negative_prompt_2(parameters.for_each_prompt(negative_prompt_2));
    }
    let Flux { true_cfg_scale, max_sequence_length } = &parameters.flux;
    if let Some(scale) = true_cfg_scale {
        call = call.true_cfg_scale(*scale);
    }
    if let Some(tokens) = max_sequence_length {
        call = call.max_sequence_length(*tokens);
    }
    Ok(call.run()?.images.into_images()?)
}
