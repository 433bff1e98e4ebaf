//! The integration tests, in one binary.
//!
//! `parity` compares with what diffusers computes; `make fixtures` has diffusers write that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

mod bad_arguments;
mod bad_files;
mod cli;
mod cli_faults;
mod cli_models;
mod compile;
mod faults;
mod floors;
mod flux;
mod from_pictures;
mod fuzzed;
mod gpu;
mod hub;
mod loading;
mod lora;
mod memory_combinations;
mod memory_ledger;
mod offloading;
mod parity;
mod prepack;
mod regional;
mod safety;
mod schedulers;
mod sdxl;
mod sharing;
mod soak;
mod stable_diffusion;
mod streams;
mod support;
mod switches;
mod synchronization;
mod winograd;
