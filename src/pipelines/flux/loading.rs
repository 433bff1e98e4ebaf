//! `FluxPipeline::from_pretrained`.

use super::{FluxComponents, FluxPipeline};
use crate::error::Result;
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer};
use crate::models::transformers::{FluxTransformer, FluxTransformer2DModel};
use crate::pipelines::loading::optional;
use crate::pipelines::{ModelIndex, PipelineLoader};
use crate::schedulers::Scheduler;

/// How many models there are.
const MODELS: usize = 4;

/// What `from_pretrained` of [`FluxPipeline`] may be told; `load` does it.
pub type FluxLoader = PipelineLoader<FluxPipeline, PassedFluxComponents>;

/// The components that were passed in, or left out.
#[derive(Debug, Default)]
pub struct PassedFluxComponents {
    vae: Option<AutoencoderKL>,
    text_encoder: Option<Option<CLIPTextModel>>,
    text_encoder_2: Option<Option<T5EncoderModel>>,
    tokenizer: Option<Option<CLIPTokenizer>>,
    tokenizer_2: Option<Option<T5Tokenizer>>,
    transformer: Option<Box<dyn FluxTransformer>>,
    scheduler: Option<Box<dyn Scheduler>>,
}

impl PipelineLoader<FluxPipeline, PassedFluxComponents> {
    /// Uses this VAE.
    pub fn vae(mut self, vae: AutoencoderKL) -> Self {
        self.passed.vae = Some(vae);
        self
    }

    /// Uses this model to embed whole prompts; `None` leaves it out, for calls with embeddings.
    pub fn text_encoder(mut self, text_encoder: impl Into<Option<CLIPTextModel>>) -> Self {
        self.passed.text_encoder = Some(text_encoder.into());
        self
    }

    /// Uses this model to embed prompts token by token; `None` leaves it out, and its 9 GB in FLUX.1 with it.
    pub fn text_encoder_2(mut self, text_encoder_2: impl Into<Option<T5EncoderModel>>) -> Self {
        self.passed.text_encoder_2 = Some(text_encoder_2.into());
        self
    }

    /// Uses this tokenizer for the first text encoder, or none.
    pub fn tokenizer(mut self, tokenizer: impl Into<Option<CLIPTokenizer>>) -> Self {
        self.passed.tokenizer = Some(tokenizer.into());
        self
    }

    /// Uses this tokenizer for the second text encoder, or none.
    pub fn tokenizer_2(mut self, tokenizer_2: impl Into<Option<T5Tokenizer>>) -> Self {
        self.passed.tokenizer_2 = Some(tokenizer_2.into());
        self
    }

    /// Uses this transformer.
    pub fn transformer(mut self, transformer: impl FluxTransformer + 'static) -> Self {
        self.passed.transformer = Some(Box::new(transformer));
        self
    }

    /// Uses this scheduler.
    pub fn scheduler(mut self, scheduler: Box<dyn Scheduler>) -> Self {
        self.passed.scheduler = Some(scheduler);
        self
    }

    /// Reads what was not passed in, and puts the pipeline together.
    ///
    /// # Errors
    /// As for [`StableDiffusionPipeline`](crate::StableDiffusionPipeline):
    /// [`StableDiffusionLoader`](crate::pipelines::stable_diffusion::StableDiffusionLoader).
    pub fn load(mut self) -> Result<FluxPipeline> {
        self.source.download(&[
            ("vae", self.passed.vae.is_some()),
            ("text_encoder", self.passed.text_encoder.is_some()),
            ("text_encoder_2", self.passed.text_encoder_2.is_some()),
            ("tokenizer", self.passed.tokenizer.is_some()),
            ("tokenizer_2", self.passed.tokenizer_2.is_some()),
            ("transformer", self.passed.transformer.is_some()),
            ("scheduler", self.passed.scheduler.is_some()),
        ])?;
        let index = self.source.index(&[FluxPipeline::CLASS_NAME])?;
        self.check(&index)?;
        let Self { source, passed, .. } = self;
        let bar = source.progress_bar.start(5, "loading");
        let scheduler = passed.scheduler.map_or_else(|| source.scheduler(), Ok)?;
        let tokenizer = || CLIPTokenizer::from_pretrained(source.folder.join("tokenizer"));
        let tokenizer = optional(&index, "tokenizer", passed.tokenizer, tokenizer)?;
        let tokenizer_2 = || T5Tokenizer::from_pretrained(source.folder.join("tokenizer_2"));
        let tokenizer_2 = optional(&index, "tokenizer_2", passed.tokenizer_2, tokenizer_2)?;
        bar.inc(1);
        let text_encoder =
            optional(&index, "text_encoder", passed.text_encoder, || source.model("text_encoder", MODELS))?;
        bar.inc(1);
        let text_encoder_2 =
            optional(&index, "text_encoder_2", passed.text_encoder_2, || source.model("text_encoder_2", MODELS))?;
        bar.inc(1);
        let transformer = match passed.transformer {
            Some(transformer) => transformer,
            None => Box::new(source.model::<FluxTransformer2DModel>("transformer", MODELS)?),
        };
        bar.inc(1);
        let vae = passed.vae.map_or_else(|| source.model("vae", MODELS), Ok)?;
        bar.finish_and_clear();
        let mut pipeline = FluxPipeline::new(FluxComponents {
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            transformer,
            scheduler,
        });
        pipeline.progress_bar = source.progress_bar;
        Ok(pipeline)
    }

    /// Holds the folder's index to what is supported, before any weights are read.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        let passed = &self.passed;
        index.require_all(&[
            ("transformer", passed.transformer.is_some(), &[FluxTransformer2DModel::CLASS_NAME]),
            ("vae", passed.vae.is_some(), &[AutoencoderKL::CLASS_NAME]),
        ])?;
        index.require_those_there(&[
            ("text_encoder", passed.text_encoder.is_some(), &[CLIPTextModel::CLASS_NAME]),
            ("text_encoder_2", passed.text_encoder_2.is_some(), &[T5EncoderModel::CLASS_NAME]),
            ("tokenizer", passed.tokenizer.is_some(), &["CLIPTokenizer", "CLIPTokenizerFast"]),
            ("tokenizer_2", passed.tokenizer_2.is_some(), &[T5Tokenizer::CLASS_NAME, "T5TokenizerFast"]),
        ])?;
        self.source.check_variant(&[
            ("text_encoder", CLIPTextModel::WEIGHTS_STEM),
            ("text_encoder_2", T5EncoderModel::WEIGHTS_STEM),
            ("transformer", FluxTransformer2DModel::WEIGHTS_STEM),
            ("vae", AutoencoderKL::WEIGHTS_STEM),
        ])
    }
}
