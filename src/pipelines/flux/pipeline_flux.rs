//! `FluxPipeline`: its components.
//!
//! Mirrors `diffusers/pipelines/flux/pipeline_flux.py` at 0.42.1. IP-Adapters are left out.

use super::call::FluxCall;
use super::loading::FluxLoader;
use crate::configuration_utils::write_json;
use crate::error::{Error, Result};
use crate::hooks::ModelOffload;
use crate::image_processor::VaeImageProcessor;
use crate::loaders::SaveOptions;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::compile::CompileOptions;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer};
use crate::models::transformers::{FluxTransformer, FluxTransformer2DModel, compile_shared};
use crate::models::{ModelMixin, To};
use crate::pipelines::pipeline_mixin::refuse_to_move;
use crate::pipelines::pipeline_utils::model_index;
use crate::pipelines::shared_methods::parts_by_fields;
use crate::pipelines::{CallMemory, MemoryReport, Parts, PipelineModel, PooledPromptEmbeds, Prompt};
use crate::schedulers::Scheduler;
use crate::utils::progress::ProgressBarConfig;
use std::path::Path;
use tch::Device;

/// The parts of a [`FluxPipeline`].
#[derive(Debug)]
pub struct FluxComponents {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to one embedding for the whole prompt; may be left out, for calls with embeddings.
    pub text_encoder: Option<CLIPTextModel>,
    /// Token numbers to an embedding for each; may be left out as well.
    pub text_encoder_2: Option<T5EncoderModel>,
    /// Text to token numbers for the first text encoder.
    pub tokenizer: Option<CLIPTokenizer>,
    /// Text to token numbers for the second text encoder.
    pub tokenizer_2: Option<T5Tokenizer>,
    /// Predicts the velocity of latents. Anything that implements [`FluxTransformer`] can take its place.
    pub transformer: Box<dyn FluxTransformer>,
    /// The noise levels and their solver.
    pub scheduler: Box<dyn Scheduler>,
}

/// Text to picture with FLUX.1.
///
/// # Examples
/// ```no_run
/// use tch::Kind;
/// use tch_diffusers::{FluxPipeline, PipelineMixin};
/// let mut pipe = FluxPipeline::from_pretrained("black-forest-labs/FLUX.1-schnell").torch_dtype(Kind::BFloat16).load()?;
/// pipe.enable_model_cpu_offload(tch::Device::Cuda(0))?;
/// let call = pipe.call("a cat holding a sign that says hello world").num_inference_steps(4).guidance_scale(0.0);
/// let output = call.max_sequence_length(256).seed(0).run()?;
/// output.images.to_rgb()?[0].save("flux.png").map_err(|error| tch_diffusers::Error::Argument(error.to_string()))?;
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Debug)]
pub struct FluxPipeline {
    /// Pictures to latents and back.
    pub vae: AutoencoderKL,
    /// Token numbers to one embedding for the whole prompt; may be left out, for calls with embeddings.
    pub text_encoder: Option<CLIPTextModel>,
    /// Token numbers to an embedding for each; may be left out as well.
    pub text_encoder_2: Option<T5EncoderModel>,
    /// Text to token numbers for the first text encoder.
    pub tokenizer: Option<CLIPTokenizer>,
    /// Text to token numbers for the second text encoder.
    pub tokenizer_2: Option<T5Tokenizer>,
    /// Predicts the velocity of latents. Anything that implements [`FluxTransformer`] can take its place.
    pub transformer: Box<dyn FluxTransformer>,
    /// The noise levels and their solver.
    pub scheduler: Box<dyn Scheduler>,
    /// How a call shows that it goes on.
    pub progress_bar: ProgressBarConfig,
    pub(super) image_processor: VaeImageProcessor,
    pub(super) model_offload: Option<ModelOffload>,
    pub(super) last_call: Option<CallMemory>,
}

impl FluxPipeline {
    /// diffusers' name of the class.
    pub const CLASS_NAME: &'static str = "FluxPipeline";

    /// Reads the pipeline that diffusers wrote to `folder`: `from_pretrained(folder).torch_dtype(Kind::BFloat16).load()?`.
    /// Where there is no such folder, `owner/name` is a repository of the Hub: see
    /// [`HubOptions`](crate::loaders::HubOptions).
    pub fn from_pretrained(folder: impl AsRef<Path>) -> FluxLoader {
        FluxLoader::new(folder.as_ref())
    }

    /// A pipeline of ready-made components.
    #[must_use]
    pub fn new(components: FluxComponents) -> Self {
        let FluxComponents { vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, transformer, scheduler } =
            components;
        // The sides of a picture are even numbers of latents.
        let image_processor = VaeImageProcessor::new(vae.config().vae_scale_factor() * 2);
        let (progress_bar, model_offload, last_call) = (ProgressBarConfig::default(), None, None);
        Self {
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            transformer,
            scheduler,
            progress_bar,
            image_processor,
            model_offload,
            last_call,
        }
    }

    /// Puts another transformer in the place of this one, such as
    /// [`TracedFluxTransformer`](crate::models::transformers::TracedFluxTransformer).
    pub fn set_transformer(&mut self, transformer: impl FluxTransformer + 'static) {
        self.transformer = Box::new(transformer);
    }

    /// Has the transformer run compiled, over the weights that it has: [`FluxTransformer2DModel::compile`].
    ///
    /// # Errors
    /// As there; [`Error::Unsupported`] for a transformer that is no [`FluxTransformer2DModel`], [`Error::Argument`] while
    /// offloading, layerwise casting or a hook is on: compile first.
    pub fn compile_transformer(&mut self, options: &CompileOptions) -> Result<()> {
        self.transformer = compile_shared(&*self.transformer, options).map_err(|error| error.within("transformer"))?;
        Ok(())
    }

    /// Prepares a picture of `prompt`: a text, or a list of texts for a batch. Options follow; `run` draws it.
    pub fn call(&mut self, prompt: impl Into<Prompt>) -> FluxCall<'_> {
        FluxCall::new(self, Some(prompt.into()), None)
    }

    /// As [`FluxPipeline::call`], with embeddings of the prompts in place of texts.
    pub fn call_embeds(&mut self, embeds: PooledPromptEmbeds) -> FluxCall<'_> {
        FluxCall::new(self, None, Some(embeds))
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
        self.transformer.move_to(target).map_err(|error| error.within("transformer"))?;
        self.vae.to(target).map_err(|error| error.within("vae"))
    }

    /// Where the work is done: where the models lie, or where offloading takes them.
    #[must_use]
    pub fn device(&self) -> Device {
        self.transformer.device()
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
    /// [`Error::Io`] if a file cannot be written; [`Error::Unsupported`] if the transformer is no
    /// [`FluxTransformer2DModel`].
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_with(folder, &SaveOptions::default())
    }

    /// As [`FluxPipeline::save_pretrained`], with a limit for the size of each file of weights, or a variant in their names.
    ///
    /// # Errors
    /// As [`FluxPipeline::save_pretrained`]; [`Error::Argument`] for a variant that no file name can hold.
    pub fn save_pretrained_with(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        let transformer = self.transformer.model().ok_or_else(|| {
            Error::Unsupported(
                "only a FluxTransformer2DModel can be saved; this pipeline has another transformer".into(),
            )
        })?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let class = |is_there: bool, class: &'static str| if is_there { class } else { "" };
        let index = model_index(
            Self::CLASS_NAME,
            &[
                ("feature_extractor", "", ""),
                ("image_encoder", "", ""),
                ("scheduler", "diffusers", self.scheduler.class_name()),
                ("text_encoder", "transformers", class(self.text_encoder.is_some(), CLIPTextModel::CLASS_NAME)),
                ("text_encoder_2", "transformers", class(self.text_encoder_2.is_some(), T5EncoderModel::CLASS_NAME)),
                ("tokenizer", "transformers", class(self.tokenizer.is_some(), "CLIPTokenizer")),
                ("tokenizer_2", "transformers", class(self.tokenizer_2.is_some(), T5Tokenizer::CLASS_NAME)),
                ("transformer", "diffusers", FluxTransformer2DModel::CLASS_NAME),
                ("vae", "diffusers", AutoencoderKL::CLASS_NAME),
            ],
        );
        write_json(&folder.join("model_index.json"), &index)?;
        self.scheduler.save_pretrained(&folder.join("scheduler"))?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save_pretrained(folder.join("tokenizer"))?;
        }
        if let Some(tokenizer_2) = &self.tokenizer_2 {
            tokenizer_2.save_pretrained(folder.join("tokenizer_2"))?;
        }
        if let Some(text_encoder) = &self.text_encoder {
            text_encoder.save_pretrained_with(folder.join("text_encoder"), options)?;
        }
        if let Some(text_encoder_2) = &self.text_encoder_2 {
            text_encoder_2.save_pretrained_with(folder.join("text_encoder_2"), options)?;
        }
        transformer.save_pretrained_with(folder.join("transformer"), options)?;
        self.vae.save_pretrained_with(folder.join("vae"), options)
    }
}

impl Parts for FluxPipeline {
    fn models(&self) -> Vec<PipelineModel> {
        let tree = self.transformer.tree();
        let transformer = tree.map(|tree| PipelineModel::of_node::<FluxTransformer2DModel>("transformer", tree));
        let first = self.text_encoder.as_ref().map(|model| PipelineModel::new("text_encoder", model));
        let second = self.text_encoder_2.as_ref().map(|model| PipelineModel::new("text_encoder_2", model));
        let vae = PipelineModel::new("vae", &self.vae);
        [first, second, transformer, Some(vae)].into_iter().flatten().collect()
    }

    fn denoiser(&self, technique: &str) -> Result<PipelineModel> {
        let refusal = || Error::Unsupported(format!("{technique} needs a transformer with modules; this one has none"));
        let tree = self.transformer.tree().ok_or_else(refusal)?;
        Ok(PipelineModel::of_node::<FluxTransformer2DModel>("transformer", tree))
    }

    parts_by_fields!();
}
