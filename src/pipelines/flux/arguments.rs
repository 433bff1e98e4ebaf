//! The arguments of a call: what they may be, and what they come to.

use super::denoise::Callback;
use super::pipeline_flux::FluxPipeline;
use crate::error::{Error, Result};
use crate::image_processor::OutputType;
use crate::pipelines::Prompt;
use crate::pipelines::checks::{check_finite, check_images_per_prompt, check_pixels, check_run};
use crate::pipelines::generators::Generators;
use crate::pipelines::two_prompts::{PooledPromptEmbeds, TwoPrompts};
use tch::Tensor;

/// Side of the pictures that FLUX.1 was trained on, in latents.
const DEFAULT_SAMPLE_SIZE: i64 = 128;

/// The most tokens of a prompt.
const LONGEST_PROMPT: usize = 512;

/// What a call is told.
pub(super) struct Arguments<'a> {
    pub(super) prompts: TwoPrompts,
    pub(super) true_cfg_scale: f64,
    pub(super) height: Option<i64>,
    pub(super) width: Option<i64>,
    pub(super) num_inference_steps: usize,
    pub(super) sigmas: Option<Vec<f64>>,
    pub(super) guidance_scale: f64,
    pub(super) num_images_per_prompt: i64,
    pub(super) generators: Generators<'a>,
    pub(super) latents: Option<Tensor>,
    pub(super) output_type: OutputType,
    pub(super) callback: Option<Callback<'a>>,
    pub(super) max_sequence_length: usize,
}

/// What the transformer is told of the text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) prompt_embeds: Tensor,
    pub(super) pooled: Tensor,
    pub(super) ids: Tensor,
}

impl Text {
    fn new(pipe: &FluxPipeline, embeds: PooledPromptEmbeds) -> Result<Self> {
        let PooledPromptEmbeds { prompt_embeds, pooled_prompt_embeds: pooled } = embeds;
        let (_, tokens, _) = prompt_embeds.size3()?;
        let ids = Tensor::f_zeros([tokens, 3], (pipe.text_kind(), pipe.device()))?;
        Ok(Self { prompt_embeds, pooled, ids })
    }
}

impl Arguments<'_> {
    pub(super) fn new(prompt: Option<Prompt>, embeds: Option<PooledPromptEmbeds>) -> Self {
        Self {
            prompts: TwoPrompts::new(prompt, embeds),
            true_cfg_scale: 1.0,
            height: None,
            width: None,
            num_inference_steps: 28,
            sigmas: None,
            guidance_scale: 3.5,
            num_images_per_prompt: 1,
            generators: Generators::Global,
            latents: None,
            output_type: OutputType::Image,
            callback: None,
            max_sequence_length: LONGEST_PROMPT,
        }
    }

    /// How many pictures there will be.
    pub(super) fn pictures(&self) -> i64 {
        self.prompts.count().saturating_mul(self.num_images_per_prompt)
    }

    /// Whether there are two predictions a step.
    pub(super) fn does_true_cfg(&self) -> bool {
        self.true_cfg_scale > 1.0 && (self.prompts.negative_prompt.is_some() || self.prompts.negative_embeds.is_some())
    }

    /// Height and width of the latents, which are even, once all arguments are seen to fit together.
    pub(super) fn check(&self, pipe: &FluxPipeline) -> Result<(i64, i64)> {
        let refuse = |text: String| Err(Error::Argument(text));
        let factor = pipe.vae_scale_factor();
        let own = DEFAULT_SAMPLE_SIZE * factor;
        let (height, width, unit) = (self.height.unwrap_or(own), self.width.unwrap_or(own), 2 * factor);
        if height < unit || width < unit {
            return refuse(format!("`height` and `width` have to be at least {unit}, but are {height} and {width}"));
        }
        if height % unit != 0 || width % unit != 0 {
            tracing::warn!(
                "`height` and `width` have to be divisible by {unit} but are {height} and {width}: the picture is of the \
                 next smaller size"
            );
        }
        if self.max_sequence_length > LONGEST_PROMPT {
            let asked = self.max_sequence_length;
            return refuse(format!("`max_sequence_length` cannot be greater than {LONGEST_PROMPT}, but is {asked}"));
        }
        self.prompts.check(false)?;
        check_images_per_prompt(self.num_images_per_prompt)?;
        check_pixels(height, width, self.pictures())?;
        check_finite(&[("guidance_scale", self.guidance_scale), ("true_cfg_scale", self.true_cfg_scale)])?;
        check_run(self.num_inference_steps, None, self.sigmas.as_deref())?;
        Ok((2 * (height / unit), 2 * (width / unit)))
    }

    /// The prompts, and the negative ones where they count.
    pub(super) fn texts(&self, pipe: &FluxPipeline) -> Result<(Text, Option<Text>)> {
        let prompts = &self.prompts;
        let text = self.text(pipe, prompts.texts(), prompts.embeds.as_ref())?;
        if !self.does_true_cfg() {
            return Ok((text, None));
        }
        let negative = self.text(pipe, prompts.negative_texts(), prompts.negative_embeds.as_ref())?;
        Ok((text, Some(negative)))
    }

    fn text(
        &self,
        pipe: &FluxPipeline,
        texts: Option<(Vec<&str>, Vec<&str>)>,
        embeds: Option<&PooledPromptEmbeds>,
    ) -> Result<Text> {
        let images = self.num_images_per_prompt;
        let embeds = match (texts, embeds) {
            (Some((first, second)), _) => pipe.encode_prompt(&first, &second, images, self.max_sequence_length)?,
            // Differs from diffusers: there, embeddings are taken once, so that more pictures of each fail.
            (None, Some(given)) => given.on(pipe.device())?.repeated(images)?,
            (None, None) => return Err(Error::Argument("there is no prompt".into())),
        };
        Text::new(pipe, embeds)
    }
}
