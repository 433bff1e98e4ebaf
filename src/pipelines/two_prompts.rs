//! Prompts of pipelines with two text encoders.

use super::Prompt;
use super::pipeline_utils::repeat_for_images;
use crate::error::{Error, Result};
use tch::{Device, Tensor};

/// The embeddings of prompts, of pipelines whose second text encoder reads them as well.
#[derive(Debug)]
pub struct PooledPromptEmbeds {
    /// An embedding for each token, `[batch, tokens, channels]`.
    pub prompt_embeds: Tensor,
    /// One for the whole prompt, `[batch, channels]`.
    pub pooled_prompt_embeds: Tensor,
}

impl PooledPromptEmbeds {
    /// Each item `images` times, its copies side by side.
    pub(super) fn repeated(&self, images: i64) -> Result<Self> {
        Ok(Self {
            prompt_embeds: repeat_for_images(&self.prompt_embeds, images)?,
            pooled_prompt_embeds: repeat_for_images(&self.pooled_prompt_embeds, images)?,
        })
    }

    /// The same on a device.
    pub(super) fn on(&self, device: Device) -> Result<Self> {
        Ok(Self {
            prompt_embeds: self.prompt_embeds.f_to_device(device)?,
            pooled_prompt_embeds: self.pooled_prompt_embeds.f_to_device(device)?,
        })
    }

    /// Zeros of the same shapes, which stand for no prompt.
    pub(super) fn zeros(&self) -> Result<Self> {
        Ok(Self {
            prompt_embeds: self.prompt_embeds.f_zeros_like()?,
            pooled_prompt_embeds: self.pooled_prompt_embeds.f_zeros_like()?,
        })
    }

    /// `negative` before `self`, as guidance takes them.
    pub(super) fn after(&self, negative: &Self) -> Result<Self> {
        let both = |first: &Tensor, second: &Tensor| Tensor::f_cat(&[first, second], 0);
        Ok(Self {
            prompt_embeds: both(&negative.prompt_embeds, &self.prompt_embeds)?,
            pooled_prompt_embeds: both(&negative.pooled_prompt_embeds, &self.pooled_prompt_embeds)?,
        })
    }
}

/// What a call is told of the text.
#[derive(Debug)]
pub(super) struct TwoPrompts {
    pub(super) prompt: Option<Prompt>,
    pub(super) prompt_2: Option<Prompt>,
    pub(super) negative_prompt: Option<Prompt>,
    pub(super) negative_prompt_2: Option<Prompt>,
    pub(super) embeds: Option<PooledPromptEmbeds>,
    pub(super) negative_embeds: Option<PooledPromptEmbeds>,
}

impl TwoPrompts {
    pub(super) fn new(prompt: Option<Prompt>, embeds: Option<PooledPromptEmbeds>) -> Self {
        let (prompt_2, negative_prompt, negative_prompt_2) = (None, None, None);
        Self { prompt, prompt_2, negative_prompt, negative_prompt_2, embeds, negative_embeds: None }
    }

    /// How many prompts there are.
    pub(super) fn count(&self) -> i64 {
        match (&self.prompt, &self.embeds) {
            (Some(prompt), _) => prompt.texts().len() as i64,
            (None, Some(embeds)) => embeds.prompt_embeds.size().first().copied().unwrap_or(0),
            (None, None) => 0,
        }
    }

    /// What the first and the second text encoder read, where there is a prompt.
    pub(super) fn texts(&self) -> Option<(Vec<&str>, Vec<&str>)> {
        texts(&self.prompt, &self.prompt_2)
    }

    /// As [`TwoPrompts::texts`], of what the picture should not show; one text serves all prompts.
    pub(super) fn negative_texts(&self) -> Option<(Vec<&str>, Vec<&str>)> {
        let (first, second) = texts(&self.negative_prompt, &self.negative_prompt_2)?;
        let for_all = |texts: Vec<_>| if texts.len() == 1 { vec![texts[0]; self.count() as usize] } else { texts };
        Some((for_all(first), for_all(second)))
    }

    /// Holds texts and embeddings to what fits together. One negative text may serve all prompts, or not.
    pub(super) fn check(&self, one_negative_serves_all: bool) -> Result<()> {
        let refuse = |text: String| Err(Error::Argument(text));
        if self.count() == 0 {
            return refuse("there is no prompt".into());
        }
        if self.embeds.is_some() && self.prompt_2.is_some() {
            return refuse("give either `prompt_2` or embeddings, not both".into());
        }
        if self.negative_embeds.is_some() && (self.negative_prompt.is_some() || self.negative_prompt_2.is_some()) {
            return refuse("give either `negative_prompt` or its embeddings, not both".into());
        }
        let others = [
            ("prompt_2", &self.prompt_2, false),
            ("negative_prompt", &self.negative_prompt, one_negative_serves_all),
            ("negative_prompt_2", &self.negative_prompt_2, one_negative_serves_all),
        ];
        for (name, prompt, one_serves_all) in others {
            let count = match prompt {
                None => continue,
                Some(Prompt::One(_)) if one_serves_all => continue,
                Some(prompt) => prompt.texts().len() as i64,
            };
            if count != self.count() {
                return refuse(format!("there are {count} of `{name}` for {} prompts", self.count()));
            }
        }
        for (name, embeds) in [("embeds", &self.embeds), ("negative_embeds", &self.negative_embeds)] {
            let Some(PooledPromptEmbeds { prompt_embeds, pooled_prompt_embeds }) = embeds else { continue };
            let (tokens, pooled) = (prompt_embeds.size(), pooled_prompt_embeds.size());
            if tokens.len() != 3 || pooled.len() != 2 || tokens.first() != pooled.first() {
                return refuse(format!(
                    "the `{name}` are [batch, tokens, channels] and [batch, channels], got {tokens:?} and {pooled:?}"
                ));
            }
        }
        if let (Some(embeds), Some(negative)) = (&self.embeds, &self.negative_embeds)
            && embeds.prompt_embeds.size() != negative.prompt_embeds.size()
        {
            let (embeds, negative) = (embeds.prompt_embeds.size(), negative.prompt_embeds.size());
            return refuse(format!("`prompt_embeds` is {embeds:?}, but `negative_prompt_embeds` is {negative:?}"));
        }
        Ok(())
    }
}

/// As in Python, an empty second text stands for none.
fn texts<'a>(first: &'a Option<Prompt>, second: &'a Option<Prompt>) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
    let first = first.as_ref()?.texts();
    let second = second.as_ref().filter(|second| **second != Prompt::One(String::new()));
    let second = second.map_or_else(|| first.clone(), Prompt::texts);
    Some((first, second))
}

/// The methods of a call, over its `arguments`, by which two text encoders are told what to draw.
macro_rules! two_prompts_arguments {
    () => {
        /// What the second text encoder reads in place of the prompt: one text for one prompt, a list for a list.
        pub fn prompt_2(mut self, prompt_2: impl Into<Prompt>) -> Self {
            self.arguments.prompts.prompt_2 = Some(prompt_2.into());
            self
        }

        /// What the picture should not show: one text for one prompt, a list for a list.
        pub fn negative_prompt(mut self, negative_prompt: impl Into<Prompt>) -> Self {
            self.arguments.prompts.negative_prompt = Some(negative_prompt.into());
            self
        }

        /// What the second text encoder reads in place of the negative prompt.
        pub fn negative_prompt_2(mut self, negative_prompt_2: impl Into<Prompt>) -> Self {
            self.arguments.prompts.negative_prompt_2 = Some(negative_prompt_2.into());
            self
        }

        /// The negative prompts' embeddings, shaped like the prompts'.
        pub fn negative_embeds(mut self, embeds: PooledPromptEmbeds) -> Self {
            self.arguments.prompts.negative_embeds = Some(embeds);
            self
        }
    };
}

pub(super) use two_prompts_arguments;
