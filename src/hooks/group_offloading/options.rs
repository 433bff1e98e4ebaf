//! What group offloading may be told.

use super::grouping::{self, OffloadGroup};
use crate::error::{Error, Result};
use crate::hooks::residency::{Residency, Weight};
use crate::hooks::transport::{Pinning, SMALLEST_LIMIT, Terms};
use crate::loaders::is_below;
use crate::nn::{Node, Param};
use crate::torch::Stream;
use std::str::FromStr;
use tch::{Device, Kind};

/// How finely a model is cut into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupOffloadingType {
    /// Some blocks of a list at a time: `block_level`.
    BlockLevel,
    /// One convolution, linear map or embedding at a time: `leaf_level`.
    LeafLevel,
}

impl FromStr for GroupOffloadingType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "block_level" => Ok(Self::BlockLevel),
            "leaf_level" => Ok(Self::LeafLevel),
            other => Err(Error::Argument(format!("unknown offload type `{other}`: use block_level or leaf_level"))),
        }
    }
}

/// The options of group offloading, named as the arguments of diffusers' `apply_group_offloading`.
///
/// # Examples
/// ```
/// use tch::Device;
/// use tch_diffusers::hooks::GroupOffloading;
/// // Weights stay in their files, two blocks of the model at a time are in memory.
/// let options = GroupOffloading::block_level(2).onload_device(Device::Cpu).offload_to_disk(true);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing before they are passed on"]
pub struct GroupOffloading {
    pub(super) offload_type: GroupOffloadingType,
    pub(super) num_blocks_per_group: usize,
    pub(crate) onload_device: Device,
    pub(super) offload_device: Device,
    pub(super) offload_to_disk: bool,
    non_blocking: bool,
    pub(super) use_stream: bool,
    record_stream: bool,
    low_cpu_mem_usage: bool,
    pinned_memory_limit: Option<usize>,
    prefetch_groups: usize,
    pub(super) block_modules: Vec<String>,
    compute_dtype: Option<Kind>,
    kept_in_fp32: &'static [&'static str],
}

impl GroupOffloading {
    fn new(offload_type: GroupOffloadingType, num_blocks_per_group: usize) -> Self {
        Self {
            offload_type,
            num_blocks_per_group,
            onload_device: Device::cuda_if_available(),
            offload_device: Device::Cpu,
            offload_to_disk: false,
            non_blocking: false,
            use_stream: false,
            record_stream: false,
            low_cpu_mem_usage: false,
            pinned_memory_limit: None,
            prefetch_groups: 1,
            block_modules: vec![],
            compute_dtype: None,
            kept_in_fp32: &[],
        }
    }

    /// Groups of `num_blocks_per_group` blocks, at least 1, of each list of blocks directly below the model. All the rest
    /// is one group, which stays for the whole forward.
    pub fn block_level(num_blocks_per_group: usize) -> Self {
        Self::new(GroupOffloadingType::BlockLevel, num_blocks_per_group)
    }

    /// A group for each convolution, linear map and embedding; other weights by the module they belong to.
    pub fn leaf_level() -> Self {
        Self::new(GroupOffloadingType::LeafLevel, 1)
    }

    /// Where the work is done; by default the first CUDA device, or the CPU where there is none. That weights go to a
    /// CUDA device and back compiles, but was not yet run on one.
    pub fn onload_device(mut self, device: Device) -> Self {
        self.onload_device = device;
        self
    }

    /// Where weights wait; the CPU by default.
    pub fn offload_device(mut self, device: Device) -> Self {
        self.offload_device = device;
        self
    }

    /// Leaves waiting weights to the safetensors files they were loaded from; off by default. Works with the CPU as
    /// onload device too. Weights of the file's own dtype cost neither a copy nor time; others are cast for each forward.
    // Differs from diffusers: `offload_to_disk_path` names a folder into which all weights are written a second time.
    pub fn offload_to_disk(mut self, offload_to_disk: bool) -> Self {
        self.offload_to_disk = offload_to_disk;
        self
    }

    /// Whether copies to the onload device may go on while the host does other things; off by default.
    pub fn non_blocking(mut self, non_blocking: bool) -> Self {
        self.non_blocking = non_blocking;
        self
    }

    /// Copies weights beside the work, on a CUDA stream of their own; off by default. The weights of a group wait in one
    /// piece of pinned host memory, which takes the place of what they had, and go to the device in one copy. The groups
    /// that come next, as earlier forwards showed, are sent for ahead. Compiles, but was not yet run on a CUDA device.
    // Differs from diffusers: there, each weight is copied by itself, pinned memory comes on top of what the weights had,
    // and the host waits for both streams at each group. Groups of several blocks are cut into single blocks.
    pub fn use_stream(mut self, use_stream: bool) -> Self {
        self.use_stream = use_stream;
        self
    }

    /// With [`GroupOffloading::use_stream`]: has the allocator decide when the device memory of a group is used again, not
    /// a ring of buffers. A copy then never waits for the work on an earlier group, and takes more memory for it. Off by
    /// default.
    pub fn record_stream(mut self, record_stream: bool) -> Self {
        self.record_stream = record_stream;
        self
    }

    /// With [`GroupOffloading::use_stream`]: pins nothing ahead but two small buffers, through which all weights pass on
    /// their way; off by default. Without a stream nothing is pinned, and it changes nothing, as in diffusers.
    pub fn low_cpu_mem_usage(mut self, low_cpu_mem_usage: bool) -> Self {
        self.low_cpu_mem_usage = low_cpu_mem_usage;
        self
    }

    /// With [`GroupOffloading::use_stream`]: the most host memory that is pinned, in bytes; the model's size and a little
    /// more by default. Groups that find no room wait in ordinary memory, and pass through two small buffers on their way.
    /// For a pipeline it is shared out among the models by their size.
    pub fn pinned_memory_limit(mut self, bytes: usize) -> Self {
        self.pinned_memory_limit = Some(bytes);
        self
    }

    /// With [`GroupOffloading::use_stream`]: how many groups are sent for ahead of the one at work; 1 by default, as in
    /// diffusers. More even out groups of unequal size, and each takes its memory on the device.
    pub fn prefetch_groups(mut self, count: usize) -> Self {
        self.prefetch_groups = count;
        self
    }

    /// Children that are cut into blocks like a model of their own, at block level; the model's own by default.
    pub fn block_modules(mut self, names: &[&str]) -> Self {
        self.block_modules = names.iter().map(ToString::to_string).collect();
        self
    }

    /// As [`GroupOffloading::block_modules`], for a model that knows its own, unless some were given.
    pub(crate) fn or_block_modules(self, names: &[&str]) -> Self {
        if self.block_modules.is_empty() { self.block_modules(names) } else { self }
    }

    /// The limit on pinned memory, for a part of the models it was given for: `share` of `whole`.
    pub(crate) fn with_share_of_limit(mut self, share: usize, whole: usize) -> Self {
        let of = |limit: usize| (limit as u128 * share as u128 / whole.max(1) as u128) as usize;
        self.pinned_memory_limit = self.pinned_memory_limit.map(|limit| of(limit).max(SMALLEST_LIMIT));
        self
    }

    /// With [`GroupOffloading::offload_to_disk`], the dtype that weights are cast to each time they are read.
    pub(crate) fn compute_dtype(mut self, kind: Kind) -> Self {
        self.compute_dtype = Some(kind);
        self
    }

    /// The modules, by a name in their path, of which the weights are cast to float32 in place of that dtype.
    pub(crate) fn keep_in_fp32(mut self, modules: &'static [&'static str]) -> Self {
        self.kept_in_fp32 = modules;
        self
    }

    pub(crate) fn is_to_disk(&self) -> bool {
        self.offload_to_disk
    }

    /// Holds the options to each other and to the machine, before any model is looked at.
    ///
    /// # Errors
    /// [`Error::Argument`] for options that contradict each other, [`Error::Unsupported`] for `use_stream` where CUDA
    /// cannot be used.
    pub fn check(&self) -> Result<()> {
        if self.use_stream && self.onload_device == Device::Cpu {
            let text = "`use_stream` needs an onload device with streams, and the CPU has none";
            return Err(Error::Argument(text.into()));
        }
        self.check_terms()?;
        if self.use_stream {
            Stream::current(self.onload_device).map_err(|error| match error {
                Error::Unsupported(reason) => Error::Unsupported(format!("`use_stream`: {reason}")),
                other => other,
            })?;
        }
        Ok(())
    }

    /// Holds the options to each other.
    pub(super) fn check_terms(&self) -> Result<()> {
        let refuse = |text: &str| Err(Error::Argument(text.into()));
        if self.num_blocks_per_group == 0 {
            return refuse("`num_blocks_per_group` has to be at least 1");
        }
        if self.record_stream && !self.use_stream {
            return refuse("`record_stream` cannot be true when `use_stream` is false");
        }
        if self.offload_to_disk && self.offload_device != Device::Cpu {
            return refuse("with `offload_to_disk` the offload device has to be the CPU");
        }
        if self.use_stream && self.offload_device != Device::Cpu {
            return refuse("with `use_stream` the offload device has to be the CPU");
        }
        match self.pinned_memory_limit {
            Some(_) if !self.use_stream => refuse("`pinned_memory_limit` goes with `use_stream`"),
            Some(limit) if limit < SMALLEST_LIMIT => {
                refuse(&format!("`pinned_memory_limit` has to be at least {SMALLEST_LIMIT} bytes"))
            }
            _ => Ok(()),
        }
    }

    /// The groups that `node` is cut into, in the order in which diffusers makes them.
    ///
    /// # Errors
    /// As [`GroupOffloading::check`].
    pub fn groups(&self, node: &Node) -> Result<Vec<OffloadGroup>> {
        self.check()?;
        Ok(grouping::groups(node, self))
    }

    /// What the weight at `key` is computed in where the others are in `kind`.
    fn kind_of(&self, key: &str, kind: Kind) -> Kind {
        if is_below(key, self.kept_in_fp32) { Kind::Float } else { kind }
    }

    pub(super) fn weights(&self, group: &OffloadGroup) -> Result<Vec<Weight>> {
        let weight = |(key, param): &(String, Param)| match self.offload_to_disk {
            true => Weight::in_file(key, param.clone(), self.compute_dtype.map(|kind| self.kind_of(key, kind))),
            false => Ok(Weight::in_memory(param.clone())),
        };
        group.params.iter().map(weight).collect()
    }

    pub(super) fn terms(&self) -> Terms {
        // What lies in a file cannot be pinned.
        let pinning =
            Pinning { ahead: !self.low_cpu_mem_usage && !self.offload_to_disk, limit: self.pinned_memory_limit };
        Terms { prefetch: self.prefetch_groups, record_stream: self.record_stream, pinning }
    }

    pub(super) fn residency(&self, group: &OffloadGroup) -> Result<Residency> {
        Ok(Residency::new(group.id.clone(), self.weights(group)?, self.onload_device, self.non_blocking))
    }
}
