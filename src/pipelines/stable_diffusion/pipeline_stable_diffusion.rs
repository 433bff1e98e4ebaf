//! `StableDiffusionPipeline`: its components, and the encoding of prompts.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` at 0.42.1.

use super::call::StableDiffusionCall;
use super::loading::{FromComponents, StableDiffusionLoader};
use super::memory_report::LastCall;
use super::safety_checker::StableDiffusionSafetyChecker;
use super::task::TextToImage;
use super::traced::Traced;
use crate::configuration_utils::{ConfigMap, write_json};
use crate::error::{Error, Result};
use crate::hooks::ModelOffload;
use crate::image_processor::{CLIPImageProcessor, VaeImageProcessor};
use crate::loaders::SaveOptions;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::compile::CompileOptions;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel, compile_shared};
use crate::models::{ModelMixin, To};
use crate::pipelines::Prompt;
use crate::pipelines::pipeline_mixin::refuse_to_move;
use crate::pipelines::pipeline_utils::{model_index, repeat_for_images};
use crate::schedulers::{Scheduler, scheduler_from_config};
use crate::utils::progress::ProgressBarConfig;
use serde_json::json;
use std::path::Path;
use tch::{Device, Tensor};

/// The parts of a [`StableDiffusionPipeline`].
#[derive(Debug)]
pub struct Components {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to embeddings.
    pub text_encoder: CLIPTextModel,
    /// Text to token numbers.
    pub tokenizer: CLIPTokenizer,
    /// Predicts the noise in latents.
    pub unet: Box<dyn UNet>,
    /// The noise schedule and its solver.
    pub scheduler: Box<dyn Scheduler>,
    /// Looks at the pictures, and blackens those that show what they should not; none leaves all as they are.
    pub safety_checker: Option<StableDiffusionSafetyChecker>,
    /// Turns pictures into what the safety checker looks at.
    pub feature_extractor: Option<CLIPImageProcessor>,
    /// Whether the lack of a safety checker is worth a warning.
    pub requires_safety_checker: bool,
}

/// Text to picture with Stable Diffusion 1.x and 2.x.
///
/// # Examples
/// ```
/// use tch_diffusers::{pipelines::stable_diffusion::StableDiffusionPipeline, utils::assets::bundled_model};
/// let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
/// let output = pipe.call("a red circle on a blue background").num_inference_steps(4).seed(0).run()?;
/// let picture = &output.images.to_rgb()?[0];
/// assert_eq!(picture.dimensions(), (128, 128));
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct StableDiffusionPipeline {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to embeddings.
    pub text_encoder: CLIPTextModel,
    /// Text to token numbers.
    pub tokenizer: CLIPTokenizer,
    /// Predicts the noise in latents. Anything that implements [`UNet`] can take its place.
    pub unet: Box<dyn UNet>,
    /// The noise schedule and its solver. Another one takes over its configuration:
    /// `pipe.scheduler = SchedulerKind::UniPCMultistep.from_config(pipe.scheduler.config())?`.
    pub scheduler: Box<dyn Scheduler>,
    /// Looks at the pictures, and blackens those that show what they should not: [`StableDiffusionPipelineOutput`] says
    /// which. None leaves all as they are.
    ///
    /// [`StableDiffusionPipelineOutput`]: super::StableDiffusionPipelineOutput
    pub safety_checker: Option<StableDiffusionSafetyChecker>,
    /// Turns pictures into what the safety checker looks at.
    pub feature_extractor: Option<CLIPImageProcessor>,
    /// Whether the lack of a safety checker is worth a warning when the pipeline is put together, here or where it is
    /// loaded again.
    pub requires_safety_checker: bool,
    /// How a call shows that it goes on.
    pub progress_bar: ProgressBarConfig,
    pub(super) image_processor: VaeImageProcessor,
    pub(super) model_offload: Option<ModelOffload>,
    pub(super) traced: Traced,
    pub(super) last_call: Option<LastCall>,
}

impl StableDiffusionPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "StableDiffusionPipeline";

    /// Reads the pipeline that diffusers wrote to `folder`: `from_pretrained(folder).torch_dtype(Kind::Half).load()?`.
    /// Where there is no such folder, `owner/name` is a repository of the Hub: see
    /// [`HubOptions`](crate::loaders::HubOptions).
    pub fn from_pretrained(folder: impl AsRef<Path>) -> StableDiffusionLoader {
        StableDiffusionLoader::new(folder.as_ref())
    }

    /// The pipeline that draws from noise with the components of another one, such as a
    /// [`StableDiffusionImg2ImgPipeline`](super::StableDiffusionImg2ImgPipeline), with what is switched on there. They move:
    /// no weight is copied.
    #[must_use]
    pub fn from_pipe(pipe: impl Into<Self>) -> Self {
        pipe.into()
    }

    /// A pipeline of ready-made components.
    ///
    /// As in diffusers, a scheduler configured as for the first releases (`steps_offset` other than 1, or `clip_sample`)
    /// is brought up to date.
    ///
    /// # Errors
    /// If the scheduler's configuration does not fit once it is up to date; [`Error::Argument`] for a safety checker
    /// without a feature extractor.
    pub fn new(components: Components) -> Result<Self> {
        Self::of(components, Self::OUTDATED_OPTION)
    }

    /// As [`StableDiffusionPipeline::new`], with another option of the scheduler to be brought up to date.
    pub(super) fn of(components: Components, outdated_option: (&str, bool)) -> Result<Self> {
        check_components(&components)?;
        let Components { vae, text_encoder, tokenizer, unet, scheduler, .. } = components;
        let Components { safety_checker, feature_extractor, requires_safety_checker, .. } = components;
        let scheduler = up_to_date(scheduler, outdated_option)?;
        let image_processor = VaeImageProcessor::new(vae_scale_factor(&vae));
        let progress_bar = ProgressBarConfig::default();
        let (model_offload, last_call) = (None, None);
        Ok(Self {
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            requires_safety_checker,
            progress_bar,
            image_processor,
            traced: Traced::default(),
            model_offload,
            last_call,
        })
    }

    /// Puts `unet` in the UNet's place: another checkpoint's, a traced one, or anything that implements [`UNet`]. One
    /// without a configuration takes over that of the UNet before it.
    pub fn set_unet(&mut self, mut unet: impl UNet + 'static) {
        unet.adopt(self.unet.config());
        self.unet = Box::new(unet);
    }

    /// Has the UNet run compiled, over the weights that it has: [`UNet2DConditionModel::compile`].
    ///
    /// # Errors
    /// As there; [`Error::Unsupported`] for a UNet that is no [`UNet2DConditionModel`], [`Error::Argument`] while offloading,
    /// layerwise casting or a hook is on: compile first.
    pub fn compile_unet(&mut self, options: &CompileOptions) -> Result<()> {
        self.unet = compile_shared(&*self.unet, options).map_err(|error| error.within("unet"))?;
        Ok(())
    }

    /// Prepares a picture of `prompt`: a text, or a list of texts for a batch. Options follow; `run` draws it.
    pub fn call(&mut self, prompt: impl Into<Prompt>) -> StableDiffusionCall<'_> {
        StableDiffusionCall::new(self, prompt.into(), TextToImage)
    }

    /// As [`StableDiffusionPipeline::call`], with embeddings of the prompts in place of texts.
    ///
    /// # Shapes
    /// `prompt_embeds` is `[batch, tokens, hidden_size]`. With guidance, `negative_prompt_embeds` is needed as well.
    pub fn call_embeds(&mut self, prompt_embeds: Tensor) -> StableDiffusionCall<'_> {
        StableDiffusionCall::of_embeds(self, prompt_embeds, TextToImage)
    }

    /// Moves all models to a device, casts them to a dtype, or lays them out in a memory format.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Unsupported`] if the UNet is of a kind that cannot follow;
    /// [`Error::Argument`] for a device while offloading is on.
    pub fn to(&mut self, target: impl Into<To>) -> Result<()> {
        let target = target.into();
        if matches!(target, To::Device(_)) {
            refuse_to_move(self)?;
        }
        self.text_encoder.to(target).map_err(|error| error.within("text_encoder"))?;
        self.unet.move_to(target).map_err(|error| error.within("unet"))?;
        self.vae.to(target).map_err(|error| error.within("vae"))?;
        if let Some(checker) = &self.safety_checker {
            checker.to(target).map_err(|error| error.within("safety_checker"))?;
        }
        self.traced.move_to(target)
    }

    /// Where the work is done: where the models lie, or where offloading takes them.
    #[must_use]
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Pixels of the picture to one of the latents, each way.
    #[must_use]
    pub fn vae_scale_factor(&self) -> i64 {
        vae_scale_factor(&self.vae)
    }

    /// Writes the pipeline to `folder`, so that diffusers reads it back.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; [`Error::Unsupported`] if the UNet is no [`UNet2DConditionModel`].
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(folder, &SaveOptions::default())
    }

    /// As [`StableDiffusionPipeline::save_pretrained`], with a limit for the size of each file of weights, or a variant in
    /// their names.
    ///
    /// # Errors
    /// As [`StableDiffusionPipeline::save_pretrained`]; [`Error::Argument`] for a variant that no file name can hold.
    pub fn save_pretrained_with(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        self.save_as(Self::CLASS_NAME, folder.as_ref(), options)
    }

    /// Writes the components as those of a pipeline of class `class_name`.
    pub(super) fn save_as(&self, class_name: &str, folder: &Path, options: &SaveOptions) -> Result<()> {
        let unet = self.unet.model().ok_or_else(|| {
            Error::Unsupported("only a UNet2DConditionModel can be saved; this pipeline has another UNet".into())
        })?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let (checker, extractor) = (self.safety_checker.as_ref(), self.feature_extractor.as_ref());
        let mut index = model_index(
            class_name,
            &[
                ("feature_extractor", "transformers", extractor.map_or("", |_| CLIPImageProcessor::CLASS_NAME)),
                ("image_encoder", "", ""),
                (
                    "safety_checker",
                    "stable_diffusion",
                    checker.map_or("", |_| StableDiffusionSafetyChecker::CLASS_NAME),
                ),
                ("scheduler", "diffusers", self.scheduler.class_name()),
                ("text_encoder", "transformers", CLIPTextModel::CLASS_NAME),
                ("tokenizer", "transformers", "CLIPTokenizer"),
                ("unet", "diffusers", UNet2DConditionModel::CLASS_NAME),
                ("vae", "diffusers", AutoencoderKL::CLASS_NAME),
            ],
        );
        index.insert("requires_safety_checker".into(), json!(self.requires_safety_checker));
        write_json(&folder.join("model_index.json"), &index)?;
        self.scheduler.save_pretrained(&folder.join("scheduler"))?;
        self.tokenizer.save_pretrained(folder.join("tokenizer"))?;
        self.text_encoder.save_pretrained_with(folder.join("text_encoder"), options)?;
        unet.save_pretrained_with(folder.join("unet"), options)?;
        self.vae.save_pretrained_with(folder.join("vae"), options)?;
        if let Some(checker) = checker {
            checker.save_pretrained_with(folder.join("safety_checker"), options)?;
        }
        extractor.map_or(Ok(()), |extractor| extractor.save_pretrained(folder.join("feature_extractor")))
    }

    /// The embeddings of prompts, each repeated `num_images_per_prompt` times.
    ///
    /// A prompt longer than the model takes is cut, with a warning that quotes what was cut. `clip_skip` of 1 takes the
    /// text encoder's layer before the last.
    ///
    /// # Shapes
    /// `[prompts * num_images_per_prompt, tokens, hidden_size]`
    ///
    /// # Errors
    /// If the text cannot be tokenized, or the text encoder fails.
    pub fn encode_prompt(
        &self,
        prompts: &[&str],
        num_images_per_prompt: i64,
        clip_skip: Option<usize>,
    ) -> Result<Tensor> {
        let max_length = self.tokenizer.model_max_length()?;
        let tokens = self.tokenizer.encode_batch(prompts, max_length)?;
        if let Some(removed) = &tokens.removed_text {
            tracing::warn!("CLIP takes at most {max_length} tokens, so this part of the prompt was cut: {removed:?}");
        }
        let device = self.text_encoder_device()?;
        let input_ids = tokens.input_ids.f_to_device(device)?;
        let attention_mask = match self.text_encoder.config().use_attention_mask {
            true => Some(tokens.attention_mask.f_to_device(device)?),
            false => None,
        };
        let embeds = self.embed(&input_ids, attention_mask.as_ref(), clip_skip)?;
        repeat_for_images(&embeds, num_images_per_prompt)
    }
}

/// The same holds in diffusers.
fn check_components(components: &Components) -> Result<()> {
    if components.safety_checker.is_some() && components.feature_extractor.is_none() {
        return Err(Error::Argument(
            "a safety checker needs a feature extractor: pass one, or leave the safety checker out".into(),
        ));
    }
    if components.safety_checker.is_none() && components.requires_safety_checker {
        tracing::warn!(
            "there is no safety checker, though this model asks for one: the pictures are not looked at. Mind the licence of \
             Stable Diffusion, and show no unfiltered pictures in public"
        );
    }
    Ok(())
}

fn vae_scale_factor(vae: &AutoencoderKL) -> i64 {
    1 << vae.config().block_out_channels.len().saturating_sub(1)
}

impl FromComponents for StableDiffusionPipeline {
    const OUTDATED_OPTION: (&'static str, bool) = ("clip_sample", true);
}

/// The scheduler as today's pipelines expect it to be configured: with 1 as `steps_offset`, and the other of two values of
/// `option`.
fn up_to_date(scheduler: Box<dyn Scheduler>, (option, value): (&str, bool)) -> Result<Box<dyn Scheduler>> {
    let mut config: ConfigMap = scheduler.config().clone();
    let mut outdated = false;
    if config.get("steps_offset").is_some_and(|offset| *offset != json!(1)) {
        tracing::warn!("the scheduler's `steps_offset` is outdated and was set to 1");
        config.insert("steps_offset".into(), json!(1));
        outdated = true;
    }
    if config.get(option) == Some(&json!(value)) {
        tracing::warn!("the scheduler's `{option}` is outdated and was set to {}", !value);
        config.insert(option.into(), json!(!value));
        outdated = true;
    }
    if outdated { scheduler_from_config(&config) } else { Ok(scheduler) }
}
