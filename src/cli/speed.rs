//! The options that trade exactness for speed, or the other way round, of every subcommand that draws.

use clap::Args;
use serde::{Deserialize, Serialize};
use tch_diffusers::models::attention_dispatch::AttentionBackend;
use tch_diffusers::torch::{MatmulPrecision, Switch, set_num_threads};
use tch_diffusers::{DiffusionPipeline, Error, PipelineMixin};

/// What is switched on for speed. It can change a picture's last bits, so it is kept with the picture.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "Speed")]
#[serde(default)]
pub(crate) struct Speed {
    /// A traced UNet to draw with, of `tch-diffusers trace` or of Python's torch.jit.trace
    #[arg(long, value_name = "PT")]
    pub(crate) traced_unet: Option<String>,
    /// Threads that share the work of one operation [default: one for each core]
    #[arg(long)]
    threads: Option<usize>,
    /// Computes convolutions on the CPU in float32 with a quarter of the multiplications; fastest with --channels-last. The
    /// pictures differ by rounding
    #[arg(long)]
    winograd: bool,
    /// Keeps the weights of convolutions on the CPU in the layout of the kernels: less time and the same picture, for a second
    /// copy of the weights
    #[arg(long)]
    weights_prepack: bool,
    /// Computes attention by this backend: native, _native_flash, _native_efficient, _native_cudnn or _native_math
    #[arg(long, value_name = "NAME", value_parser = backend)]
    attention_backend: Option<String>,
    /// How exact products of float32 matrices are: highest, high (TF32) or medium
    #[arg(long, value_name = "PRECISION", value_parser = precision)]
    float32_matmul_precision: Option<String>,
    /// Multiplies float32 matrices in TF32 on CUDA devices that have it
    #[arg(long, conflicts_with = "float32_matmul_precision")]
    allow_tf32: bool,
    /// Has cuDNN try its algorithms and keep the fastest
    #[arg(long)]
    cudnn_benchmark: bool,
    /// Only algorithms that give the same bits each time
    #[arg(long)]
    deterministic: bool,
}

fn backend(name: &str) -> Result<String, Error> {
    name.parse::<AttentionBackend>().map(|backend| backend.name().to_string())
}

fn precision(name: &str) -> Result<String, Error> {
    name.parse::<MatmulPrecision>().map(|_| name.to_string())
}

impl Speed {
    /// These options, and those of `base` that are not named here.
    pub(crate) fn or(&self, base: Self) -> Self {
        Self {
            traced_unet: self.traced_unet.clone().or(base.traced_unet),
            threads: self.threads.or(base.threads),
            winograd: self.winograd || base.winograd,
            weights_prepack: self.weights_prepack || base.weights_prepack,
            attention_backend: self.attention_backend.clone().or(base.attention_backend),
            float32_matmul_precision: self.float32_matmul_precision.clone().or(base.float32_matmul_precision),
            allow_tf32: self.allow_tf32 || base.allow_tf32,
            cudnn_benchmark: self.cudnn_benchmark || base.cudnn_benchmark,
            deterministic: self.deterministic || base.deterministic,
        }
    }

    /// Sets the process's switches, before anything is loaded: a trace and cuDNN look at them when they are made.
    pub(crate) fn switch(&self) -> Result<(), Error> {
        if let Some(threads) = self.threads {
            set_num_threads(threads)?;
        }
        if let Some(precision) = &self.float32_matmul_precision {
            precision.parse::<MatmulPrecision>()?.set()?;
        }
        let switches = [
            (self.allow_tf32, Switch::MatmulAllowTf32),
            (self.allow_tf32, Switch::CudnnAllowTf32),
            (self.cudnn_benchmark, Switch::CudnnBenchmark),
            (self.deterministic, Switch::CudnnDeterministic),
            (self.deterministic, Switch::DeterministicAlgorithms),
        ];
        switches.into_iter().filter(|(on, _)| *on).try_for_each(|(_, switch)| switch.set(true))
    }

    /// Switches on what is the pipeline's.
    pub(crate) fn enable(&self, pipe: &DiffusionPipeline) -> Result<(), Error> {
        if self.winograd {
            pipe.enable_winograd()?;
        }
        if self.weights_prepack {
            pipe.enable_weights_prepack()?;
        }
        match &self.attention_backend {
            Some(backend) => pipe.set_attention_backend(backend.parse()?),
            None => Ok(()),
        }
    }
}
