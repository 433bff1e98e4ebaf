//! `tch-diffusers env`: what a bug report wants to know.

use crate::outcome::say;
use clap::Args;
use tch_diffusers::torch::{cpu_capability, cuda_unavailable_reason, libtorch_version};
use tch_diffusers::utils::assets::bundled_model;

/// Prints versions, devices, and why CUDA cannot be used where it cannot.
#[derive(Debug, Args)]
pub(crate) struct Env {}

impl Env {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let line = |name: &str, value: String| say(format!("{name:<16} {value}"));
        line("tch-diffusers", env!("CARGO_PKG_VERSION").into())?;
        line("mirrors", format!("diffusers {}", tch_diffusers::configuration_utils::DIFFUSERS_VERSION))?;
        line("libtorch", libtorch_version()?)?;
        line("platform", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))?;
        line("CPU kernels", cpu_capability()?)?;
        line("CPU threads", tch::get_num_threads().to_string())?;
        line("oneDNN", if tch::utils::has_mkldnn() { "yes" } else { "no" }.into())?;
        match cuda_unavailable_reason()? {
            Some(reason) => line("CUDA", format!("not available: {reason}"))?,
            None => {
                line("CUDA", format!("{} device(s)", tch::Cuda::device_count()))?;
                line("cuDNN", if tch::Cuda::cudnn_is_available() { "yes" } else { "no" }.into())?;
            }
        }
        line("bundled model", bundled_model().map_or_else(|error| error.to_string(), |path| path.display().to_string()))
    }
}
