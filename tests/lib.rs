//! The integration tests, in one binary.
//!
//! `parity` compares with what diffusers computes; `make fixtures` has diffusers write that.

mod loading;
mod parity;
mod support;
