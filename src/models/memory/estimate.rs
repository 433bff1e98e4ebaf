//! What a forward, or a pipeline's call, is expected to take.

use super::shadow::Peak;
use super::{Arena, Decoding, Options, decode, human_bytes, persistent, unet};
use crate::error::Result;
use crate::models::autoencoders::AutoencoderKL;
use crate::models::unets::UNet2DConditionModel;
use crate::nn::Module;
use crate::torch::DeviceExt;
use serde::Serialize;
use std::fmt;
use tch::{Device, Kind};

/// Pages of libtorch's code that are read for the first time, and buffers of its kernels that are not tensors. Measured on
/// x86-64 with two threads, for models of 4 MB to 4 GB: 75 to 135 MiB.
const LIBTORCH_ITSELF: i64 = 100 << 20;

/// One part of the work, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageEstimate {
    /// Such as `denoise`.
    pub name: String,
    /// Weights that lie on the device all the time.
    pub weights: i64,
    /// Copies of weights that are there when most is allocated: those of offloading and of layerwise casting.
    pub copies: i64,
    /// Activations and workspaces, when most is allocated.
    pub activations: i64,
    /// All together at the worst moment, pages of files included.
    pub peak: i64,
}

impl StageEstimate {
    pub(crate) fn new(name: &str, weights: i64, peak: Peak) -> Self {
        let activations = peak.allocated - peak.copied;
        Self { name: name.into(), weights, copies: peak.copied, activations, peak: weights + peak.total }
    }

    /// What libtorch's allocator is asked for: what a [`MemoryTracker`](crate::torch::MemoryTracker) will see.
    #[must_use]
    pub fn allocated(&self) -> i64 {
        self.copies + self.activations
    }
}

/// What some work is expected to take on the device where it is done, with the techniques that are switched on.
///
/// Weights are exact. Activations follow the forward tensor by tensor; the workspaces are those of libtorch's kernels on
/// the CPU. On CUDA those of cuDNN are not known and not counted, and nothing was compared with a device yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Where, as torch names it.
    pub device: String,
    /// The work's parts, in their order.
    pub stages: Vec<StageEstimate>,
}

impl MemoryEstimate {
    pub(crate) fn new(device: Device, stages: Vec<StageEstimate>) -> Self {
        Self { device: device.torch_name(), stages }
    }

    /// The most that is taken at once, weights and pages of files included, in bytes.
    #[must_use]
    pub fn peak(&self) -> i64 {
        self.stages.iter().map(|stage| stage.peak).max().unwrap_or(0)
    }

    /// The most that libtorch's allocator is asked for, in bytes: see [`StageEstimate::allocated`].
    #[must_use]
    pub fn allocated(&self) -> i64 {
        self.stages.iter().map(StageEstimate::allocated).max().unwrap_or(0)
    }

    /// What the process grows by at most if the work is done on the CPU, in bytes: [`MemoryEstimate::peak`], and what
    /// libtorch takes beside tensors; none for another device, whose host is not reckoned with.
    ///
    /// It stands for what `VmHWM` of `/proc/self/status` will show; `make bench-memory` prints how far off it is.
    #[must_use]
    pub fn process_peak(&self) -> Option<i64> {
        (self.device == Device::Cpu.torch_name()).then(|| self.peak() + LIBTORCH_ITSELF)
    }

    /// The stage called `name`.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageEstimate> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16}{:>12}{:>12}{:>12}{:>12}", self.device, "weights", "copies", "activations", "peak")?;
        for stage in &self.stages {
            let numbers = [stage.weights, stage.copies, stage.activations, stage.peak].map(human_bytes);
            writeln!(f, "{:<16}{:>12}{:>12}{:>12}{:>12}", stage.name, numbers[0], numbers[1], numbers[2], numbers[3])?;
        }
        Ok(())
    }
}

impl UNet2DConditionModel {
    /// What a forward will take, with the hooks and slices that are on.
    ///
    /// `sample` is `[batch, height, width]` in latent pixels, `tokens` those of the text; `dtype` is that of the forward,
    /// as if the model were cast to it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) naming a module that is not as the estimate expects it.
    pub fn estimate_memory(&self, sample: [i64; 3], tokens: i64, dtype: Kind) -> Result<MemoryEstimate> {
        let (node, device, [batch, height, width]) = (self.node(), self.node().execution_device(), sample);
        let arena = Arena::new(dtype, device)?;
        // The inputs are the caller's, and were there before.
        let sample = arena.tensor(&[batch, self.config().in_channels, height, width]);
        let text = arena.tensor(&[batch, tokens, self.config().text_channels()]);
        let given = arena.take_peak().allocated;
        let prediction = unet(node, &sample, &text, Options::default())?;
        drop(prediction);
        let stage = StageEstimate::new("forward", persistent(node, device, dtype), arena.take_peak().without(given));
        Ok(MemoryEstimate::new(device, vec![stage]))
    }
}

impl AutoencoderKL {
    /// What decoding a batch of pictures will take, with slicing, tiling and the hooks that are on.
    ///
    /// `pictures` is `[batch, height, width]` in pixels of the pictures; `dtype` is that of the forward, as if the model
    /// were cast to it.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) naming a module that is not as the estimate expects it.
    pub fn estimate_memory(&self, pictures: [i64; 3], dtype: Kind) -> Result<MemoryEstimate> {
        let (node, device, [batch, height, width]) = (self.node(), self.node().execution_device(), pictures);
        let (arena, factor) = (Arena::new(dtype, device)?, self.config().vae_scale_factor());
        let latents = arena.tensor(&[batch, self.config().latent_channels, height / factor, width / factor]);
        let given = arena.take_peak().allocated;
        let sample = decode(self, &latents, Decoding::of(self))?;
        drop(sample);
        let stage = StageEstimate::new("decode", persistent(node, device, dtype), arena.take_peak().without(given));
        Ok(MemoryEstimate::new(device, vec![stage]))
    }
}
