//! The extension module behind `import tch_diffusers`: models, schedulers, tokenizer, hooks and switches of `tch-diffusers`.
//!
//! What is here is small and has plain arguments. The classes that a Python program sees, named and spelled as in diffusers,
//! are the Python files in `python/tch_diffusers/`, and so is the pipelines' loop: whatever can be called may then take a
//! component's place, and a signal is seen between two steps. Forwards run without the interpreter's lock.

mod arguments;
mod bridge;
mod errors;
mod hooks;
mod hub;
mod lora;
mod models;
mod node;
mod schedulers;
mod single_file;
mod switches;
mod tokenizer;

use pyo3::prelude::*;

/// The extension module.
#[pymodule(gil_used = true)]
mod _tch_diffusers {
    #[pymodule_export]
    use super::hooks::{
        ModelOffload, apply_group_offloading, apply_layerwise_casting, apply_sequential_offloading, attention_backends,
        attn_processors, disable_layerwise_casting, remove_group_offloading, remove_sequential_offloading, reset,
        set_attention_backend, set_attention_slice, set_fused_projections, set_use_memory_efficient_attention,
        set_use_winograd, set_weights_prepack,
    };
    #[pymodule_export]
    use super::hub::{model_files, model_folder, pipeline_files, pipeline_folder};
    #[pymodule_export]
    use super::lora::{
        LoraStateDict, activate_adapters, active_adapters, choose_lora_file, delete_adapter, disable_lora, enable_lora,
        fuse_lora, fused_loras, list_adapters, load_lora_adapter, lora_file, lora_layers, replace_lora_scale,
        save_lora_weights, set_adapters, unfuse_lora, unload_lora,
    };
    #[pymodule_export]
    use super::models::{
        AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, DiagonalGaussianDistribution,
        FluxTransformer2DModel, StableDiffusionSafetyChecker, T5EncoderModel, UNet2DConditionModel,
    };
    #[pymodule_export]
    use super::node::Node;
    #[pymodule_export]
    use super::schedulers::Scheduler;
    #[pymodule_export]
    use super::single_file::{single_file_known, single_file_weights};
    #[pymodule_export]
    use super::switches::{bundled_model, libtorch_version};
    #[pymodule_export]
    use super::tokenizer::{CLIPTokenizer, T5Tokenizer};
}
