//! Techniques that hang around modules, on any tree.

mod layerwise_casting;

pub use layerwise_casting::{
    DEFAULT_SKIP_MODULES_PATTERN, LAYERWISE_CASTING_HOOK, SkipModules, apply_layerwise_casting,
    disable_layerwise_casting, is_layerwise_casting_active, set_compute_dtype,
};
