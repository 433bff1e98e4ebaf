//! `StableDiffusionXLPipeline::from_pretrained`.

use super::{StableDiffusionXLComponents, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline};
use crate::error::Result;
use crate::models::ModelMixin;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::text_encoders::{CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer};
use crate::models::unets::{UNet, UNet2DConditionModel};
use crate::pipelines::loading::optional;
use crate::pipelines::{ModelIndex, PipelineLoader};
use crate::schedulers::Scheduler;

/// How many models there are.
const MODELS: usize = 4;

const TOKENIZERS: [&str; 2] = ["CLIPTokenizer", "CLIPTokenizerFast"];

/// The pipelines whose folders are read: their components are the same.
const CLASSES: [&str; 3] = [
    StableDiffusionXLPipeline::CLASS_NAME,
    StableDiffusionXLImg2ImgPipeline::CLASS_NAME,
    "StableDiffusionXLInpaintPipeline",
];

/// What `from_pretrained` of a Stable Diffusion XL pipeline may be told; `load` does it.
pub type StableDiffusionXLLoader<P = StableDiffusionXLPipeline> = PipelineLoader<P, PassedStableDiffusionXLComponents>;

/// The components that were passed in, or left out.
#[derive(Debug, Default)]
pub struct PassedStableDiffusionXLComponents {
    vae: Option<AutoencoderKL>,
    text_encoder: Option<Option<CLIPTextModel>>,
    text_encoder_2: Option<Option<CLIPTextModelWithProjection>>,
    tokenizer: Option<Option<CLIPTokenizer>>,
    tokenizer_2: Option<Option<CLIPTokenizer>>,
    unet: Option<Box<dyn UNet>>,
    scheduler: Option<Box<dyn Scheduler>>,
}

impl<P: From<StableDiffusionXLPipeline>> PipelineLoader<P, PassedStableDiffusionXLComponents> {
    /// Uses this VAE.
    pub fn vae(mut self, vae: AutoencoderKL) -> Self {
        self.passed.vae = Some(vae);
        self
    }

    /// Uses this model for the first half of each token's embedding; `None` leaves it out, for calls with embeddings.
    pub fn text_encoder(mut self, text_encoder: impl Into<Option<CLIPTextModel>>) -> Self {
        self.passed.text_encoder = Some(text_encoder.into());
        self
    }

    /// Uses this model for the second half, and for the whole prompt's embedding; `None` leaves it out.
    pub fn text_encoder_2(mut self, text_encoder_2: impl Into<Option<CLIPTextModelWithProjection>>) -> Self {
        self.passed.text_encoder_2 = Some(text_encoder_2.into());
        self
    }

    /// Uses this tokenizer for the first text encoder, or none.
    pub fn tokenizer(mut self, tokenizer: impl Into<Option<CLIPTokenizer>>) -> Self {
        self.passed.tokenizer = Some(tokenizer.into());
        self
    }

    /// Uses this tokenizer for the second text encoder, or none.
    pub fn tokenizer_2(mut self, tokenizer_2: impl Into<Option<CLIPTokenizer>>) -> Self {
        self.passed.tokenizer_2 = Some(tokenizer_2.into());
        self
    }

    /// Uses this UNet; one without a configuration of its own takes over that of the folder.
    pub fn unet(mut self, unet: impl UNet + 'static) -> Self {
        self.passed.unet = Some(Box::new(unet));
        self
    }

    /// Uses this scheduler.
    pub fn scheduler(mut self, scheduler: Box<dyn Scheduler>) -> Self {
        self.passed.scheduler = Some(scheduler);
        self
    }

    /// Reads what was not passed in, and puts the pipeline together. A folder without a text encoder, as the refiner's is
    /// without the first one, gives a pipeline without it.
    ///
    /// # Errors
    /// As for [`StableDiffusionPipeline`](crate::StableDiffusionPipeline):
    /// [`StableDiffusionLoader`](crate::pipelines::stable_diffusion::StableDiffusionLoader).
    pub fn load(mut self) -> Result<P> {
        self.source.download(&[
            ("vae", self.passed.vae.is_some()),
            ("text_encoder", self.passed.text_encoder.is_some()),
            ("text_encoder_2", self.passed.text_encoder_2.is_some()),
            ("tokenizer", self.passed.tokenizer.is_some()),
            ("tokenizer_2", self.passed.tokenizer_2.is_some()),
            ("unet", self.passed.unet.is_some()),
            ("scheduler", self.passed.scheduler.is_some()),
        ])?;
        let index = self.source.index(&CLASSES)?;
        self.check(&index)?;
        let Self { source, passed, .. } = self;
        let bar = source.progress_bar.start(5, "loading");
        let scheduler = passed.scheduler.map_or_else(|| source.scheduler(), Ok)?;
        let tokenizer = |name: &str| CLIPTokenizer::from_pretrained(source.folder.join(name));
        let tokenizer_1 = optional(&index, "tokenizer", passed.tokenizer, || tokenizer("tokenizer"))?;
        let tokenizer_2 = optional(&index, "tokenizer_2", passed.tokenizer_2, || tokenizer("tokenizer_2"))?;
        bar.inc(1);
        let text_encoder =
            optional(&index, "text_encoder", passed.text_encoder, || source.model("text_encoder", MODELS))?;
        bar.inc(1);
        let text_encoder_2 =
            optional(&index, "text_encoder_2", passed.text_encoder_2, || source.model("text_encoder_2", MODELS))?;
        bar.inc(1);
        let unet = match passed.unet {
            Some(unet) => source.adopted(unet)?,
            None => Box::new(source.model::<UNet2DConditionModel>("unet", MODELS)?),
        };
        bar.inc(1);
        let vae = passed.vae.map_or_else(|| source.model("vae", MODELS), Ok)?;
        bar.finish_and_clear();
        let mut pipeline = StableDiffusionXLPipeline::new(StableDiffusionXLComponents {
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer: tokenizer_1,
            tokenizer_2,
            unet,
            scheduler,
            force_zeros_for_empty_prompt: index.flag("force_zeros_for_empty_prompt").unwrap_or(true),
            requires_aesthetics_score: index.flag("requires_aesthetics_score").unwrap_or(false),
        });
        pipeline.progress_bar = source.progress_bar;
        Ok(pipeline.into())
    }

    /// Holds the folder's index to what is supported, before any weights are read.
    fn check(&self, index: &ModelIndex) -> Result<()> {
        let passed = &self.passed;
        index.require_all(&[
            ("unet", passed.unet.is_some(), &[UNet2DConditionModel::CLASS_NAME]),
            ("vae", passed.vae.is_some(), &[AutoencoderKL::CLASS_NAME]),
        ])?;
        index.require_those_there(&[
            ("text_encoder", passed.text_encoder.is_some(), &[CLIPTextModel::CLASS_NAME]),
            ("text_encoder_2", passed.text_encoder_2.is_some(), &[CLIPTextModelWithProjection::CLASS_NAME]),
            ("tokenizer", passed.tokenizer.is_some(), &TOKENIZERS),
            ("tokenizer_2", passed.tokenizer_2.is_some(), &TOKENIZERS),
        ])?;
        self.source.check_variant(&[
            ("text_encoder", CLIPTextModel::WEIGHTS_STEM),
            ("text_encoder_2", CLIPTextModelWithProjection::WEIGHTS_STEM),
            ("unet", UNet2DConditionModel::WEIGHTS_STEM),
            ("vae", AutoencoderKL::WEIGHTS_STEM),
        ])
    }
}
