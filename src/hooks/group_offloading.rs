//! Group offloading: the weights of a few layers at a time are where the work is done.
//!
//! Mirrors `diffusers/hooks/group_offloading.py` (0.42.1).

mod grouping;
mod streamed;

pub use grouping::OffloadGroup;

use super::residency::{Residency, Weight};
use super::transport::{Pinning, SMALLEST_LIMIT, StreamDevice, Terms, TransferDevice};
use super::{GROUP_OFFLOADING, GROUP_OFFLOADING_ROOT, MODEL_OFFLOADING, SEQUENTIAL_OFFLOADING};
use crate::error::{Error, Result};
use crate::nn::{Hook, Next, Node, Param};
use crate::torch::Stream;
use std::str::FromStr;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

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
    offload_type: GroupOffloadingType,
    num_blocks_per_group: usize,
    pub(crate) onload_device: Device,
    offload_device: Device,
    offload_to_disk: bool,
    non_blocking: bool,
    use_stream: bool,
    record_stream: bool,
    low_cpu_mem_usage: bool,
    pinned_memory_limit: Option<usize>,
    prefetch_groups: usize,
    block_modules: Vec<String>,
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
    fn check_terms(&self) -> Result<()> {
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

    fn weights(&self, group: &OffloadGroup) -> Result<Vec<Weight>> {
        let weight = |(key, param): &(String, Param)| match self.offload_to_disk {
            true => Weight::in_file(key, param.clone()),
            false => Ok(Weight::in_memory(param.clone())),
        };
        group.params.iter().map(weight).collect()
    }

    fn terms(&self) -> Terms {
        // What lies in a file cannot be pinned.
        let pinning =
            Pinning { ahead: !self.low_cpu_mem_usage && !self.offload_to_disk, limit: self.pinned_memory_limit };
        Terms { prefetch: self.prefetch_groups, record_stream: self.record_stream, pinning }
    }

    fn residency(&self, group: &OffloadGroup) -> Result<Residency> {
        Ok(Residency::new(group.id.clone(), self.weights(group)?, self.onload_device, self.non_blocking))
    }
}

/// Has the weights at and below `node` wait on the offload device, or in their files, and come to the onload device in
/// groups, each for the time of its own forward. Group offloading that is on already is replaced.
///
/// # Errors
/// As [`GroupOffloading::check`]; [`Error::Argument`] while other offloading is on, or, with `offload_to_disk`, for
/// weights that did not come from a file or were changed since. Then no group offloading is on.
pub fn apply_group_offloading(node: &Node, options: &GroupOffloading) -> Result<()> {
    let groups = options.groups(node)?;
    if options.use_stream {
        let device = StreamDevice::new(options.onload_device)?;
        make_way(node)?;
        return streamed::attach(node, options, &groups, device);
    }
    make_way(node)?;
    let residencies = groups.iter().map(|group| options.residency(group).map(Arc::new)).collect::<Result<Vec<_>>>()?;
    if !options.offload_to_disk {
        node.to_device(options.offload_device)?;
    }
    residencies.iter().try_for_each(|residency| residency.drop_copies())?;
    let all = residencies.clone();
    for (group, residency) in groups.iter().zip(residencies) {
        for member in group.hooked() {
            let is = |leader: &Node| leader.path() == member.path();
            let (onloads, offloads) = (is(&group.onload_leader), is(&group.offload_leader));
            let hook = GroupOffloadingHook { residency: residency.clone(), onloads, offloads };
            // Outermost, so that layerwise casting casts on the onload device, and fewer bytes travel.
            member.add_outer_hook(GROUP_OFFLOADING, hook);
        }
    }
    node.add_outer_hook(GROUP_OFFLOADING_ROOT, Root(all));
    Ok(())
}

/// As [`apply_group_offloading`] with a stream, on a device that is given; the onload device of the options counts for
/// nothing.
///
/// # Errors
/// As [`apply_group_offloading`], and whatever the device refuses.
pub fn apply_group_offloading_on<D: TransferDevice>(node: &Node, options: &GroupOffloading, device: D) -> Result<()> {
    let options = options.clone().use_stream(true);
    options.check_terms()?;
    make_way(node)?;
    streamed::attach(node, &options, &grouping::groups(node, &options), device)
}

/// Takes off group offloading that is on, and refuses where other offloading is.
fn make_way(node: &Node) -> Result<()> {
    let names: Vec<_> = node.walk().iter().flat_map(Node::hook_names).collect();
    if names.iter().any(|name| [MODEL_OFFLOADING, SEQUENTIAL_OFFLOADING].contains(&name.as_str())) {
        return super::refuse_if_offloaded(node, "group offloading cannot be switched on");
    }
    remove_group_offloading(node).map(drop)
}

/// Undoes [`apply_group_offloading`]. The weights are then on the offload device, those left to files in memory again.
/// Says whether there was anything to undo.
///
/// # Errors
/// [`Error::OutOfMemory`] where weights that were left to files have no room; the offloading is still on then.
pub fn remove_group_offloading(node: &Node) -> Result<bool> {
    let mut removed = false;
    for node in node.walk() {
        removed |= node.detach_hook(GROUP_OFFLOADING_ROOT)?;
        removed |= node.remove_hook(GROUP_OFFLOADING);
    }
    Ok(removed)
}

/// Around each module of a group.
#[derive(Debug)]
struct GroupOffloadingHook {
    residency: Arc<Residency>,
    /// Whether the module is the group's first, which brings the weights.
    onloads: bool,
    /// Whether the module is the group's last, which sends them away.
    offloads: bool,
}

impl Hook for GroupOffloadingHook {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        if self.onloads {
            self.residency.onload()?;
        }
        let outputs = self.residency.receive(inputs).and_then(|inputs| next.run(&inputs));
        if self.offloads || outputs.is_err() {
            self.residency.offload();
        }
        outputs
    }

    fn execution_device(&self) -> Option<Device> {
        Some(self.residency.device())
    }

    fn compute_dtype(&self) -> Option<Kind> {
        self.residency.compute_dtype()
    }
}

/// Around the model: takes its inputs to the onload device, for what the model does with them itself, and sends away what
/// is left when a forward ends between the first and the last module of a group.
// Differs from diffusers: there, such a group stays on the device.
#[derive(Debug)]
struct Root(Vec<Arc<Residency>>);

impl Hook for Root {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let inputs = match self.0.first() {
            Some(residency) => residency.receive(inputs)?,
            None => inputs.iter().map(Tensor::shallow_clone).collect(),
        };
        let outputs = next.run(&inputs);
        self.0.iter().for_each(|residency| residency.offload());
        outputs
    }

    fn detach(&self) -> Result<()> {
        self.0.iter().try_for_each(|residency| residency.restore_copies())
    }
}
