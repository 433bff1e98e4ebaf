//! Small nouns: progress bars and pictures on disk.

pub mod assets;
pub mod image;
pub mod progress;
