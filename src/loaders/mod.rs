//! loaders.
