//! Small nouns: progress bars and pictures on disk.

pub mod assets;
pub mod image;
pub(crate) mod pil;
pub mod progress;
