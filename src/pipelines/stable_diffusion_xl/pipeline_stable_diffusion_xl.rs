//! `StableDiffusionXLPipeline`: its components.
//!
//! Mirrors `diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py` at 0.42.1. IP-Adapters and the invisible
//! watermark, which diffusers adds where its package is installed, are left out.

use super::call::StableDiffusionXLCall;
use super::loading::StableDiffusionXLLoader;
use super::task::TextToImage;
use crate::configuration_utils::write_json;
use crate::error::{Error, Result};
use crate::hooks::ModelOffload;
use crate::image_processor::VaeImageProcessor;
use crate::loaders::SaveOptions;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::compile::CompileOptions;
use crate::models::text_encoders::{CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel, compile_shared};
use crate::models::{ModelMixin, To};
use crate::pipelines::pipeline_mixin::refuse_to_move;
use crate::pipelines::pipeline_utils::model_index;
use crate::pipelines::shared_methods::parts_by_fields;
use crate::pipelines::{CallMemory, MemoryReport, Parts, PipelineModel, PooledPromptEmbeds, Prompt};
use crate::schedulers::Scheduler;
use crate::utils::progress::ProgressBarConfig;
use serde_json::json;
use std::path::Path;
use tch::Device;

/// The parts of a [`StableDiffusionXLPipeline`].
#[derive(Debug)]
pub struct StableDiffusionXLComponents {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to the first half of each token's embedding; the refiner has none, and it may be left out.
    pub text_encoder: Option<CLIPTextModel>,
    /// Token numbers to the second half, and to one embedding for the whole prompt.
    pub text_encoder_2: Option<CLIPTextModelWithProjection>,
    /// Text to token numbers for the first text encoder.
    pub tokenizer: Option<CLIPTokenizer>,
    /// Text to token numbers for the second text encoder.
    pub tokenizer_2: Option<CLIPTokenizer>,
    /// Predicts the noise in latents. Anything that implements [`UNet`] can take its place.
    pub unet: Box<dyn UNet>,
    /// The noise schedule and its solver.
    pub scheduler: Box<dyn Scheduler>,
    /// Whether no negative prompt is an embedding of zeros, and not that of an empty text; the base model's is true.
    pub force_zeros_for_empty_prompt: bool,
    /// Whether the UNet is told an aesthetic score in place of a target size; the refiner's is true.
    pub requires_aesthetics_score: bool,
}

/// Text to picture with Stable Diffusion XL.
///
/// # Examples
/// ```no_run
/// use tch::{Device, Kind};
/// use tch_diffusers::{PipelineMixin, StableDiffusionXLPipeline};
/// let folder = "stabilityai/stable-diffusion-xl-base-1.0";
/// let mut pipe = StableDiffusionXLPipeline::from_pretrained(folder).torch_dtype(Kind::Half).variant("fp16").load()?;
/// pipe.enable_model_cpu_offload(Device::Cuda(0))?;
/// let output = pipe.call("an astronaut riding a green horse").seed(0).run()?;
/// output.images.to_rgb()?[0].save("sdxl.png").map_err(|error| tch_diffusers::Error::Argument(error.to_string()))?;
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct StableDiffusionXLPipeline {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to the first half of each token's embedding; the refiner has none, and it may be left out.
    pub text_encoder: Option<CLIPTextModel>,
    /// Token numbers to the second half, and to one embedding for the whole prompt.
    pub text_encoder_2: Option<CLIPTextModelWithProjection>,
    /// Text to token numbers for the first text encoder.
    pub tokenizer: Option<CLIPTokenizer>,
    /// Text to token numbers for the second text encoder.
    pub tokenizer_2: Option<CLIPTokenizer>,
    /// Predicts the noise in latents. Anything that implements [`UNet`] can take its place.
    pub unet: Box<dyn UNet>,
    /// The noise schedule and its solver.
    pub scheduler: Box<dyn Scheduler>,
    /// How a call shows that it goes on.
    pub progress_bar: ProgressBarConfig,
    pub(super) force_zeros_for_empty_prompt: bool,
    pub(super) requires_aesthetics_score: bool,
    pub(super) image_processor: VaeImageProcessor,
    pub(super) model_offload: Option<ModelOffload>,
    pub(super) last_call: Option<CallMemory>,
}

impl StableDiffusionXLPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "StableDiffusionXLPipeline";

    /// Reads the pipeline that diffusers wrote to `folder`: `from_pretrained(folder).torch_dtype(Kind::Half).load()?`. Where
    /// there is no such folder, `owner/name` is a repository of the Hub: see [`HubOptions`](crate::loaders::HubOptions).
    pub fn from_pretrained(folder: impl AsRef<Path>) -> StableDiffusionXLLoader {
        StableDiffusionXLLoader::new(folder.as_ref())
    }

    /// A pipeline of ready-made components.
    #[must_use]
    pub fn new(components: StableDiffusionXLComponents) -> Self {
        let StableDiffusionXLComponents { vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, .. } =
            components;
        let image_processor = VaeImageProcessor::new(vae.config().vae_scale_factor());
        let (progress_bar, model_offload, last_call) = (ProgressBarConfig::default(), None, None);
        Self {
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler: components.scheduler,
            progress_bar,
            force_zeros_for_empty_prompt: components.force_zeros_for_empty_prompt,
            requires_aesthetics_score: components.requires_aesthetics_score,
            image_processor,
            model_offload,
            last_call,
        }
    }

    /// The pipeline from text to picture with the components of another one and with what is switched on there. They move: no
    /// weight is copied.
    #[must_use]
    pub fn from_pipe(pipe: impl Into<StableDiffusionXLPipeline>) -> Self {
        pipe.into()
    }

    /// Puts another UNet in the place of this one, such as [`TracedUNet`](crate::models::unets::TracedUNet). One without a
    /// configuration of its own takes this one's over.
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
    pub fn call(&mut self, prompt: impl Into<Prompt>) -> StableDiffusionXLCall<'_> {
        StableDiffusionXLCall::new(self, Some(prompt.into()), None, TextToImage)
    }

    /// As [`StableDiffusionXLPipeline::call`], with embeddings of the prompts in place of texts.
    pub fn call_embeds(&mut self, embeds: PooledPromptEmbeds) -> StableDiffusionXLCall<'_> {
        StableDiffusionXLCall::new(self, None, Some(embeds), TextToImage)
    }

    /// Moves all models to a device, casts them to a dtype, or lays them out in a memory format.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no room; [`Error::Argument`] for a device while offloading is on.
    pub fn to(&mut self, target: impl Into<To>) -> Result<()> {
        let target = target.into();
        if matches!(target, To::Device(_)) {
            refuse_to_move(self)?;
        }
        if let Some(text_encoder) = &self.text_encoder {
            text_encoder.to(target).map_err(|error| error.within("text_encoder"))?;
        }
        if let Some(text_encoder_2) = &self.text_encoder_2 {
            text_encoder_2.to(target).map_err(|error| error.within("text_encoder_2"))?;
        }
        self.unet.move_to(target).map_err(|error| error.within("unet"))?;
        self.vae.to(target).map_err(|error| error.within("vae"))
    }

    /// Where the work is done: where the models lie, or where offloading takes them.
    #[must_use]
    pub fn device(&self) -> Device {
        self.unet.device()
    }

    /// Pixels of the picture to one of the latents, each way.
    #[must_use]
    pub fn vae_scale_factor(&self) -> i64 {
        self.vae.config().vae_scale_factor()
    }

    /// What the models' weights take and how they lie, what the last call took, and what offloading and casting save. No
    /// call is estimated.
    ///
    /// # Errors
    /// Only if libtorch itself fails.
    pub fn memory_report(&self) -> Result<MemoryReport> {
        MemoryReport::new(&self.models(), self.last_call.clone())
    }

    /// Writes the pipeline to `folder`, so that diffusers reads it back.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written; [`Error::Unsupported`] if the UNet is no [`UNet2DConditionModel`].
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(folder, &SaveOptions::default())
    }

    /// As [`StableDiffusionXLPipeline::save_pretrained`], with a limit for the size of each file of weights, or a variant in
    /// their names.
    ///
    /// # Errors
    /// As [`StableDiffusionXLPipeline::save_pretrained`]; [`Error::Argument`] for a variant that no file name can hold.
    pub fn save_pretrained_with(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        self.save_as(Self::CLASS_NAME, folder.as_ref(), options)
    }

    /// Writes the components as those of a pipeline of class `class_name`.
    pub(super) fn save_as(&self, class_name: &str, folder: &Path, options: &SaveOptions) -> Result<()> {
        let unet = self.unet.model().ok_or_else(|| {
            Error::Unsupported("only a UNet2DConditionModel can be saved; this pipeline has another UNet".into())
        })?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let class = |is_there: bool, class: &'static str| if is_there { class } else { "" };
        let text_encoder = class(self.text_encoder.is_some(), CLIPTextModel::CLASS_NAME);
        let text_encoder_2 = class(self.text_encoder_2.is_some(), CLIPTextModelWithProjection::CLASS_NAME);
        let mut index = model_index(
            class_name,
            &[
                ("feature_extractor", "", ""),
                ("image_encoder", "", ""),
                ("scheduler", "diffusers", self.scheduler.class_name()),
                ("text_encoder", "transformers", text_encoder),
                ("text_encoder_2", "transformers", text_encoder_2),
                ("tokenizer", "transformers", class(self.tokenizer.is_some(), "CLIPTokenizer")),
                ("tokenizer_2", "transformers", class(self.tokenizer_2.is_some(), "CLIPTokenizer")),
                ("unet", "diffusers", UNet2DConditionModel::CLASS_NAME),
                ("vae", "diffusers", AutoencoderKL::CLASS_NAME),
            ],
        );
        index.insert("force_zeros_for_empty_prompt".into(), json!(self.force_zeros_for_empty_prompt));
        // The pipeline from text has no such option in diffusers.
        if class_name != Self::CLASS_NAME {
            index.insert("requires_aesthetics_score".into(), json!(self.requires_aesthetics_score));
        }
        write_json(&folder.join("model_index.json"), &index)?;
        self.scheduler.save_pretrained(&folder.join("scheduler"))?;
        for (name, tokenizer) in [("tokenizer", &self.tokenizer), ("tokenizer_2", &self.tokenizer_2)] {
            tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save_pretrained(folder.join(name)))?;
        }
        if let Some(text_encoder) = &self.text_encoder {
            text_encoder.save_pretrained_with(folder.join("text_encoder"), options)?;
        }
        if let Some(text_encoder_2) = &self.text_encoder_2 {
            text_encoder_2.save_pretrained_with(folder.join("text_encoder_2"), options)?;
        }
        unet.save_pretrained_with(folder.join("unet"), options)?;
        self.vae.save_pretrained_with(folder.join("vae"), options)
    }
}

impl Parts for StableDiffusionXLPipeline {
    fn models(&self) -> Vec<PipelineModel> {
        let text_encoder = self.text_encoder.as_ref().map(|model| PipelineModel::new("text_encoder", model));
        let text_encoder_2 = self.text_encoder_2.as_ref().map(|model| PipelineModel::new("text_encoder_2", model));
        let unet = self.unet.tree().map(|tree| PipelineModel::of_node::<UNet2DConditionModel>("unet", tree));
        let vae = PipelineModel::new("vae", &self.vae);
        [text_encoder, text_encoder_2, unet, Some(vae)].into_iter().flatten().collect()
    }

    fn denoiser(&self, technique: &str) -> Result<PipelineModel> {
        let refusal = || Error::Unsupported(format!("{technique} needs a UNet with modules; this one has none"));
        let tree = self.unet.tree().ok_or_else(refusal)?;
        Ok(PipelineModel::of_node::<UNet2DConditionModel>("unet", tree))
    }

    parts_by_fields!();
}
