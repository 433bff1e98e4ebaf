//! The networks that read the prompt, and their tokenizers: what diffusers takes from transformers.

mod charsmap;
mod clip;
mod clip_config;
mod clip_encoder;
mod clip_special_tokens;
mod clip_tokenizer;
mod clip_tokenizer_files;
mod framing;
mod spiece_model;
mod t5;
mod t5_config;
mod t5_layers;
mod t5_tokenizer;

pub use clip::{CLIPTextModel, CLIPTextModelOutput, CLIPTextModelWithProjection, CLIPTextModelWithProjectionOutput};
pub use clip_config::CLIPTextConfig;
pub(in crate::models) use clip_encoder::{CLIPEncoderLayer, CLIPLayerConfig, PositionEmbedding, Visible};
pub use clip_tokenizer::{CLIPTokenizer, TextInputs};
pub use t5::T5EncoderModel;
pub use t5_config::T5Config;
pub use t5_tokenizer::T5Tokenizer;
