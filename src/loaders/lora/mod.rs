//! Low-rank adapters from files, and what is done with them in a tree of modules.
//!
//! Mirrors `diffusers/loaders/lora_base.py`, `lora_pipeline.py`, `lora_conversion_utils.py` and `peft.py`, and
//! `diffusers/utils/state_dict_utils.py` and `peft_utils.py`, at 0.42.1. Hu et al. 2021, "LoRA" (arXiv:2106.09685).
//!
//! A [`LoraStateDict`] is a file, in whichever layout it came; the functions of [`peft`] add its parts to any model whose
//! layers are [`Linear`](crate::nn::Linear) and [`Conv2d`](crate::nn::Conv2d). Pipelines do that with all of their models,
//! and [`PeftAdapterMixin`] with one. [`save_lora_weights`] writes what [`LoraLayers`] takes out of a model again.
//!
//! What goes with what:
//!
//! | technique | adapters beside the weights | fusing and unfusing |
//! |---|---|---|
//! | float16, bfloat16, `to(dtype)`, `to(device)`, channels_last | follow the weights | yes |
//! | model, sequential and group offloading | wait on the CPU, and come for each forward of their layer | refused |
//! | layerwise casting | stay in the dtype that is computed in | refused while it is on |
//! | `fuse_qkv_projections` | each projection does its own work while it has adapters | yes |
//! | `enable_weights_prepack`, `enable_winograd` | the layer's own work is done so, the adapters' is not | yes |
//! | tracing | refused: fuse and unload first | what is fused is traced |
//! | a traced UNet or text encoder | refused | refused |

mod adapter_mixin;
mod alphas;
mod block_weights;
mod keys;
mod kohya;
mod options;
pub mod peft;
mod save;
mod state_dict;

pub use adapter_mixin::PeftAdapterMixin;
pub use block_weights::{BlockWeights, LayerWeight, LayerWeights, SideWeights, UNetWeight};
pub use options::LoraOptions;
pub use save::{LoraLayers, SaveLora, save_lora_weights};
pub use state_dict::LoraStateDict;
