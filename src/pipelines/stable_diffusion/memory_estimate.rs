//! What a call of the pipeline will take, before it is run.

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::models::memory::{
    Arena, Decoding, MemoryEstimate, Options, Shadow, StageEstimate, decode, persistent, text_encoder, unet,
    vision_model,
};
use crate::nn::Node;
use crate::pipelines::Parts;
use crate::pipelines::memory_report::{CHECK, DECODE, DENOISE, ENCODE_PROMPT};
use std::rc::Rc;
use tch::Kind;

/// Latents that schedulers keep from earlier steps, at most.
const HISTORY: i64 = 4;

/// What a call is to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) height: i64,
    pub(super) width: i64,
    pub(super) prompts: i64,
    pub(super) images_per_prompt: i64,
    /// Whether there are two predictions a step.
    pub(super) guides: bool,
    /// Whether prompts are encoded, and not given as embeddings.
    pub(super) encodes: bool,
    /// Whether the latents become pictures.
    pub(super) decodes: bool,
    pub(super) dtype: Kind,
}

/// Techniques whose effect is left out, to see what they save.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Without {
    pub(super) attention_slicing: bool,
    pub(super) vae_slicing: bool,
    pub(super) vae_tiling: bool,
}

impl StableDiffusionPipeline {
    /// What a call takes that draws `batch` pictures of `height` x `width` pixels with guidance in `dtype`, with the
    /// techniques that are switched on now: offloading, casting, slicing, tiling.
    ///
    /// Weights are counted as if the pipeline were cast to `dtype`; what is stored in 8 bits stays so. A call's own
    /// [`estimate_memory`](super::StableDiffusionCall::estimate_memory) knows its guidance and its prompts.
    ///
    /// # Errors
    /// [`Error::Argument`] for sizes that cannot be drawn; [`Error::Unsupported`] for a UNet without modules.
    pub fn estimate_memory(&self, height: i64, width: i64, batch: i64, dtype: Kind) -> Result<MemoryEstimate> {
        let guides = self.guides(f64::INFINITY);
        let encodes = true;
        let (prompts, images_per_prompt, decodes) = (batch, 1, true);
        let plan = Plan { height, width, prompts, images_per_prompt, guides, encodes, decodes, dtype };
        self.estimate(plan, Without::default())
    }

    pub(super) fn estimate(&self, plan: Plan, without: Without) -> Result<MemoryEstimate> {
        let factor = self.vae_scale_factor();
        let Plan { height, width, dtype, .. } = plan;
        if [height, width, plan.prompts, plan.images_per_prompt].iter().any(|number| *number < 1) {
            return Err(Error::Argument("`height`, `width` and the number of pictures have to be at least 1".into()));
        }
        let device = self.device();
        let arena = Arena::new(dtype, device)?;
        let tree = self.unet.tree().ok_or_else(|| {
            Error::Unsupported("memory cannot be estimated: this pipeline's UNet has no modules".into())
        })?;
        let pictures = plan.prompts * plan.images_per_prompt;
        let weights = self.models().iter().map(|model| persistent(&model.node, device, dtype)).sum();
        let mut stages = vec![];
        let mut end = |name: &str| stages.push(StageEstimate::new(name, weights, arena.take_peak()));

        let text = self.shadow_embeds(&arena, plan)?;
        end(ENCODE_PROMPT);
        let latents = [pictures, self.unet.config().in_channels, height / factor, width / factor];
        let noise = arena.tensor(&latents);
        let latents = self.shadow_denoise(tree, &noise, &text, plan.guides, without)?;
        end(DENOISE);
        if plan.decodes {
            let scaled = latents.like();
            let decoding = Decoding::of(&self.vae);
            let slicing = decoding.slicing && !without.vae_slicing;
            let tiling = decoding.tiling && !without.vae_tiling;
            let image = decode(&self.vae, &scaled, Decoding { slicing, tiling })?;
            // Scaled, shifted and clamped; then scaled, rounded and made bytes.
            drop((image.like(), image.like(), image.like()));
            end(DECODE);
            if let Some(checker) = &self.safety_checker {
                let _image = image.like();
                vision_model(checker.vision_model(), &arena, pictures)?;
                end(CHECK);
            }
        }
        Ok(MemoryEstimate::new(device, stages))
    }

    /// The embeddings that the UNet is given.
    fn shadow_embeds(&self, arena: &Rc<Arena>, plan: Plan) -> Result<Shadow> {
        let tokens = self.tokenizer.model_max_length()? as i64;
        let pictures = plan.prompts * plan.images_per_prompt;
        let encode = || -> Result<Shadow> {
            if !plan.encodes {
                return Ok(arena.tensor(&[pictures, tokens, self.unet.config().text_channels()]));
            }
            let embeds = text_encoder(&self.text_encoder, arena, plan.prompts, tokens)?;
            Ok(match plan.images_per_prompt {
                1 => embeds,
                _ => arena.tensor(&[pictures, tokens, self.text_encoder.config().hidden_size]),
            })
        };
        let prompts = encode()?;
        if !plan.guides {
            return Ok(prompts);
        }
        let _negative = encode()?;
        Ok(arena.tensor(&[2 * pictures, tokens, self.text_encoder.config().hidden_size]))
    }

    /// The loop's latents after one of its steps, which are all alike.
    fn shadow_denoise(
        &self,
        tree: &Node,
        noise: &Shadow,
        text: &Shadow,
        guides: bool,
        without: Without,
    ) -> Result<Shadow> {
        let options = Options { without_attention_slicing: without.attention_slicing };
        let latents = noise.like();
        let _history: Vec<_> = (0..HISTORY).map(|_| noise.like()).collect();
        let input = if guides { noise.twice()? } else { latents.clone() };
        let prediction = unet(tree, &input, text, options)?;
        drop((prediction.like(), prediction));
        Ok(latents)
    }
}
