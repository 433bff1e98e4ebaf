//! Diffusion models on libtorch: the Hugging Face diffusers API in Rust.
//!
//! The same seed gives the same picture as diffusers, in less time and memory, and an error never ends the process.
//! Who knows diffusers finds every class, file, option and number under the same name.
//!
//! ```
//! use tch_diffusers::StableDiffusionPipeline;
//! use tch_diffusers::utils::assets::bundled_model;
//!
//! let mut pipe = StableDiffusionPipeline::from_pretrained(bundled_model()?).load()?;
//! let output = pipe
//!     .call("a yellow star on a black background")
//!     .num_inference_steps(8)
//!     .seed(7)
//!     .run()?;
//! let picture = &output.images.to_rgb()?[0];
//! assert_eq!(picture.dimensions(), (128, 128));
//! # Ok::<(), tch_diffusers::Error>(())
//! ```
//!
//! # What is where
//!
//! | module | holds |
//! |---|---|
//! | [`pipelines`] | from a prompt to a picture |
//! | [`models`] | the networks: text encoders, UNets, autoencoders; `from_pretrained`, `save_pretrained`, `to` |
//! | [`schedulers`] | noise schedules and the solvers that walk them |
//! | [`loaders`] | weights from files, mapped into memory; LoRAs |
//! | [`hooks`] | techniques that hang around modules: weights stored in fewer bits |
//! | [`nn`] | the module tree: weights with names, and hooks around every forward |
//! | [`hooks`] | hooks that come with the library: offloading |
//! | [`torch`] | what tch lacks: generators with torch's own numbers, memory formats |
//! | [`image_processor`], [`utils`] | pictures in and out, progress bars |
//!
//! # Errors
//!
//! Every fallible call returns [`Result`]. The kinds of [`Error`] are named by what a caller can do about them, and an
//! error inside a model names the module, as in `unet.down_blocks.0.resnets.1.conv1: ...`.
//!
//! # Rust, not Python, where they differ
//!
//! Calls are builders whose methods are named as the arguments of `__call__`; strings with a fixed set of values are enums
//! that read diffusers' strings with [`FromStr`](std::str::FromStr). Weights are not trained: nothing records gradients.

pub mod configuration_utils;
pub mod error;
pub mod hooks;
pub mod image_processor;
pub mod loaders;
pub mod models;
pub mod nn;
pub mod pipelines;
pub mod schedulers;
pub mod torch;
pub mod utils;

pub use error::{Error, Result};
pub use models::autoencoders::AutoencoderKL;
pub use models::text_encoders::{
    CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer,
};
pub use models::transformers::FluxTransformer2DModel;
pub use models::unets::UNet2DConditionModel;
pub use models::{AutoModel, ModelMixin};
pub use pipelines::flux::FluxPipeline;
pub use pipelines::stable_diffusion::{
    StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline,
    StableDiffusionSafetyChecker,
};
pub use pipelines::stable_diffusion_xl::{StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline};
pub use pipelines::{
    AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image, DiffusionPipeline, PipelineMixin,
};
pub use schedulers::{Scheduler, SchedulerKind};
pub use torch::{DeviceExt, Generator, KindExt, MemoryFormat, TensorExt};
