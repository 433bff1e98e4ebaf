//! utils.
