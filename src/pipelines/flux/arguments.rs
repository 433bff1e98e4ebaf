//! The arguments of a call: what they may be, and what they come to.

use super::denoise::Callback;
use super::pipeline_flux::{FluxPipeline, FluxPromptEmbeds};
use crate::error::{Error, Result};
use crate::image_processor::OutputType;
use crate::nn::Module;
use crate::pipelines::Prompt;
use crate::pipelines::generators::Generators;
use crate::pipelines::pipeline_utils::repeat_for_images;
use tch::Tensor;

/// Side of the pictures that FLUX.1 was trained on, in latents.
const DEFAULT_SAMPLE_SIZE: i64 = 128;

/// The most tokens of a prompt.
const LONGEST_PROMPT: usize = 512;

/// What a call is told.
pub(super) struct Arguments<'a> {
    pub(super) prompt: Option<Prompt>,
    pub(super) prompt_2: Option<Prompt>,
    pub(super) negative_prompt: Option<Prompt>,
    pub(super) negative_prompt_2: Option<Prompt>,
    pub(super) embeds: Option<FluxPromptEmbeds>,
    pub(super) negative_embeds: Option<FluxPromptEmbeds>,
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
    fn new(pipe: &FluxPipeline, embeds: FluxPromptEmbeds) -> Result<Self> {
        let FluxPromptEmbeds { prompt_embeds, pooled_prompt_embeds: pooled } = embeds;
        let (_, tokens, _) = prompt_embeds.size3()?;
        let ids = Tensor::f_zeros([tokens, 3], (pipe.text_encoder.node().dtype(), pipe.device()))?;
        Ok(Self { prompt_embeds, pooled, ids })
    }
}

impl Arguments<'_> {
    pub(super) fn new(prompt: Option<Prompt>, embeds: Option<FluxPromptEmbeds>) -> Self {
        Self {
            prompt,
            prompt_2: None,
            negative_prompt: None,
            negative_prompt_2: None,
            embeds,
            negative_embeds: None,
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

    /// How many prompts there are.
    fn prompts(&self) -> i64 {
        match (&self.prompt, &self.embeds) {
            (Some(prompt), _) => prompt.texts().len() as i64,
            (None, Some(embeds)) => embeds.prompt_embeds.size().first().copied().unwrap_or(0),
            (None, None) => 0,
        }
    }

    /// How many pictures there will be.
    pub(super) fn pictures(&self) -> i64 {
        self.prompts() * self.num_images_per_prompt
    }

    /// Whether there are two predictions a step.
    pub(super) fn does_true_cfg(&self) -> bool {
        self.true_cfg_scale > 1.0 && (self.negative_prompt.is_some() || self.negative_embeds.is_some())
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
        if self.num_images_per_prompt < 1 {
            let images = self.num_images_per_prompt;
            return refuse(format!("`num_images_per_prompt` has to be at least 1, but is {images}"));
        }
        self.check_prompts()?;
        Ok((2 * (height / unit), 2 * (width / unit)))
    }

    fn check_prompts(&self) -> Result<()> {
        let refuse = |text: &str| Err(Error::Argument(text.into()));
        if self.prompts() == 0 {
            return refuse("there is no prompt");
        }
        if self.embeds.is_some() && self.prompt_2.is_some() {
            return refuse("give either `prompt_2` or embeddings, not both");
        }
        if self.negative_embeds.is_some() && (self.negative_prompt.is_some() || self.negative_prompt_2.is_some()) {
            return refuse("give either `negative_prompt` or its embeddings, not both");
        }
        let others = [
            ("prompt_2", &self.prompt_2),
            ("negative_prompt", &self.negative_prompt),
            ("negative_prompt_2", &self.negative_prompt_2),
        ];
        for (name, prompt) in others {
            let count = prompt.as_ref().map_or(self.prompts(), |prompt| prompt.texts().len() as i64);
            if count != self.prompts() {
                return refuse(&format!("there are {count} of `{name}` for {} prompts", self.prompts()));
            }
        }
        if let (Some(embeds), Some(negative)) = (&self.embeds, &self.negative_embeds)
            && embeds.prompt_embeds.size() != negative.prompt_embeds.size()
        {
            let (embeds, negative) = (embeds.prompt_embeds.size(), negative.prompt_embeds.size());
            return refuse(&format!("`prompt_embeds` is {embeds:?}, but `negative_prompt_embeds` is {negative:?}"));
        }
        Ok(())
    }

    /// The prompts, and the negative ones where they count.
    pub(super) fn texts(&self, pipe: &FluxPipeline) -> Result<(Text, Option<Text>)> {
        let text = self.text(pipe, [&self.prompt, &self.prompt_2], &self.embeds)?;
        if !self.does_true_cfg() {
            return Ok((text, None));
        }
        let negative = [&self.negative_prompt, &self.negative_prompt_2];
        Ok((text, Some(self.text(pipe, negative, &self.negative_embeds)?)))
    }

    fn text(
        &self,
        pipe: &FluxPipeline,
        [prompt, prompt_2]: [&Option<Prompt>; 2],
        embeds: &Option<FluxPromptEmbeds>,
    ) -> Result<Text> {
        let images = self.num_images_per_prompt;
        let embeds = match (prompt, embeds) {
            (Some(prompt), _) => {
                let texts = prompt.texts();
                // As in Python, an empty text stands for none.
                let second = prompt_2.as_ref().filter(|second| **second != Prompt::One(String::new()));
                let second = second.map_or_else(|| texts.clone(), Prompt::texts);
                pipe.encode_prompt(&texts, &second, images, self.max_sequence_length)?
            }
            // Differs from diffusers: there, embeddings are taken once, so that more pictures of each fail.
            (None, Some(given)) => {
                let repeated = |embeds: &Tensor| repeat_for_images(&embeds.f_to_device(pipe.device())?, images);
                FluxPromptEmbeds {
                    prompt_embeds: repeated(&given.prompt_embeds)?,
                    pooled_prompt_embeds: repeated(&given.pooled_prompt_embeds)?,
                }
            }
            (None, None) => return Err(Error::Argument("there is no prompt".into())),
        };
        Text::new(pipe, embeds)
    }
}
