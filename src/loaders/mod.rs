//! Weights from files.

mod checkpoint;
mod options;

pub use checkpoint::{Checkpoint, KeyMap};
pub use options::LoadOptions;
