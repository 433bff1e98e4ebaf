//! Models from the Hub, by way of the cache that Python's programs keep.
//!
//! Mirrors `DiffusionPipeline.download` of `diffusers/pipelines/pipeline_utils.py` at 0.42.1, and what it uses of
//! `huggingface_hub` 2.4: the cache's layout, its locks, and its environment variables `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`,
//! `HF_HUB_DISABLE_PROGRESS_BARS` and `HF_HUB_DOWNLOAD_TIMEOUT`.

mod cache;
mod client;
mod download;
mod environment;
mod files;
mod options;
mod refusal;
mod repository;

pub use files::{model_files, pipeline_files};
pub use options::{HubOptions, is_repository};
