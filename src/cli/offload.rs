//! `--offload` and what goes with it: where weights wait while they are not needed.

use clap::{Args, ValueEnum};
use tch::Device;
use tch_diffusers::hooks::GroupOffloading;
use tch_diffusers::{DiffusionPipeline, Error, PipelineMixin, Result};

/// What is offloaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// one model at a time is on the device
    Model,
    /// one layer at a time is on the device
    Sequential,
    /// a group of layers at a time is on the device
    Group,
}

/// How finely a model is cut into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// blocks of layers
    Block,
    /// single convolutions, linear maps and embeddings
    Leaf,
}

/// The options under "Memory". None changes a pixel, so none is kept in the picture.
#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
pub(crate) struct Offload {
    /// Keeps weights off the device until they are needed; the picture stays the same.
    #[arg(long, value_enum, value_name = "UNIT")]
    offload: Option<Unit>,
    /// With --offload group: how finely models are cut [default: block]
    #[arg(long, value_enum, value_name = "LEVEL")]
    offload_type: Option<Level>,
    /// With --offload group, at block level: how many blocks come together [default: 1]
    #[arg(long, value_name = "N")]
    blocks_per_group: Option<usize>,
    /// With --offload group: leaves weights to the model's own files; on a CPU too. Nothing is written.
    #[arg(long)]
    offload_disk: bool,
    /// With --offload group, on a CUDA device: copies weights beside the work, on a stream of their own
    #[arg(long)]
    stream: bool,
    /// With --stream: has the allocator, not a ring of buffers, decide when device memory is used again. Copies wait less,
    /// and take more memory.
    #[arg(long)]
    record_stream: bool,
    /// With --stream: pins nothing ahead on the host, where weights pass through two small pinned buffers. Slower
    #[arg(long)]
    low_cpu_mem_usage: bool,
    /// With --stream: the most host memory that is pinned, in bytes [default: the models' size]
    #[arg(long, value_name = "BYTES")]
    pinned_memory_limit: Option<usize>,
}

impl Offload {
    pub(crate) fn is_on(&self) -> bool {
        self.offload.is_some()
    }

    /// Holds the options to each other and to the device, before anything is loaded.
    pub(crate) fn check(&self, device: Device) -> Result<()> {
        let refuse = |text: &str| Err(Error::Argument(text.into()));
        if self.offload != Some(Unit::Group) {
            let given = [
                (self.offload_type.is_some(), "--offload-type"),
                (self.blocks_per_group.is_some(), "--blocks-per-group"),
                (self.offload_disk, "--offload-disk"),
                (self.stream, "--stream"),
            ];
            if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
                return refuse(&format!("{option} goes with --offload group"));
            }
        }
        if self.offload_type == Some(Level::Leaf) && self.blocks_per_group.is_some() {
            return refuse("--blocks-per-group goes with --offload-type block");
        }
        if !self.stream {
            let given = [
                (self.record_stream, "--record-stream"),
                (self.low_cpu_mem_usage, "--low-cpu-mem-usage"),
                (self.pinned_memory_limit.is_some(), "--pinned-memory-limit"),
            ];
            if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
                return refuse(&format!("{option} goes with --stream"));
            }
        }
        if self.is_on() && device == Device::Cpu && !self.offload_disk {
            tracing::warn!("--offload saves nothing on the CPU, but with --offload group --offload-disk");
        }
        self.group(device).check()
    }

    /// What can be switched on while loading, so that weights in another dtype than their file's are never all in memory.
    pub(crate) fn while_loading(&self, device: Device) -> Option<GroupOffloading> {
        self.offload_disk.then(|| self.group(device))
    }

    /// Switches it on for a pipeline that is on the CPU.
    pub(crate) fn enable(&self, pipe: &mut DiffusionPipeline, device: Device) -> Result<()> {
        match self.offload {
            None => Ok(()),
            Some(Unit::Model) => pipe.enable_model_cpu_offload(device),
            Some(Unit::Sequential) => pipe.enable_sequential_cpu_offload(device),
            Some(Unit::Group) => pipe.enable_group_offload(&self.group(device), &[]),
        }
    }

    fn group(&self, device: Device) -> GroupOffloading {
        let options = match self.offload_type {
            Some(Level::Leaf) => GroupOffloading::leaf_level(),
            Some(Level::Block) | None => GroupOffloading::block_level(self.blocks_per_group.unwrap_or(1)),
        }
        .onload_device(device)
        .offload_to_disk(self.offload_disk)
        .use_stream(self.stream)
        .record_stream(self.record_stream)
        .low_cpu_mem_usage(self.low_cpu_mem_usage);
        match self.pinned_memory_limit {
            Some(bytes) => options.pinned_memory_limit(bytes),
            None => options,
        }
    }
}
