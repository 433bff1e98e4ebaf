//! How much memory models take: their weights as they lie, and what a forward will take, before it is run.
//!
//! diffusers has no twin of this. Weights are counted in the module tree. What a forward takes is found by walking
//! through it with tensors that have a shape and a lifetime, but no elements.

mod blocks;
mod estimate;
mod layers;
mod shadow;
mod text;
mod unet;
mod vae;
mod vision;
mod weights;

pub(crate) use blocks::Options;
pub use estimate::{MemoryEstimate, StageEstimate};
pub(crate) use shadow::{Arena, Shadow};
pub(crate) use text::text_encoder;
pub(crate) use unet::unet;
pub(crate) use vae::{Decoding, decode};
pub(crate) use vision::vision_model;
pub use weights::{WeightMemory, weight_memory};
pub(crate) use weights::{cast_saving, offload_saving, persistent, uses_attention_slicing};

/// Bytes in the unit that suits them: `1.5 GiB`, `312.0 MiB`, `4.2 KiB`.
///
/// # Examples
/// ```
/// assert_eq!(tch_diffusers::models::memory::human_bytes(1 << 20), "1.0 MiB");
/// ```
#[must_use]
pub fn human_bytes(bytes: i64) -> String {
    let size = bytes.unsigned_abs();
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| size >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
