//! The networks, one file each, named as in diffusers.

mod modeling_utils;

pub use modeling_utils::{ModelLoader, ModelMixin, To};
