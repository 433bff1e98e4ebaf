//! Low-rank adapters from files, and what is done with them in a tree of modules.
//!
//! Mirrors `diffusers/loaders/lora_base.py`, `lora_pipeline.py`, `lora_conversion_utils.py` and `peft.py`, and
//! `diffusers/utils/state_dict_utils.py` and `peft_utils.py`, at 0.42.1. Hu et al. 2021, "LoRA" (arXiv:2106.09685).
//!
//! A [`LoraStateDict`] is a file, in whichever layout it came; the functions of [`peft`] add its parts to any model whose
//! layers are [`Linear`](crate::nn::Linear) and [`Conv2d`](crate::nn::Conv2d).

mod alphas;
mod keys;
mod kohya;
mod options;
pub mod peft;
mod state_dict;

pub use options::LoraOptions;
pub use state_dict::LoraStateDict;
