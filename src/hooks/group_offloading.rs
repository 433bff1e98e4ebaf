//! Group offloading: the weights of a few layers at a time are where the work is done.
//!
//! Mirrors `diffusers/hooks/group_offloading.py` (0.42.1).

mod grouping;
mod options;
mod streamed;

pub use grouping::OffloadGroup;
pub use options::{GroupOffloading, GroupOffloadingType};

use super::residency::Residency;
use super::transport::{StreamDevice, TransferDevice};
use super::{GROUP_OFFLOADING, GROUP_OFFLOADING_ROOT, MODEL_OFFLOADING, SEQUENTIAL_OFFLOADING};
use crate::error::Result;
use crate::nn::{BroughtWeights, Hook, Next, Node};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Has the weights at and below `node` wait on the offload device, or in their files, and come to the onload device in
/// groups, each for the time of its own forward. Group offloading that is on already is replaced.
///
/// # Errors
/// As [`GroupOffloading::check`]; [`Error::Argument`](crate::Error::Argument) while other offloading is on, or, with
/// `offload_to_disk`, for weights that did not come from a file or were changed since. Then no group offloading is on.
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
    super::refuse_if_prepacked(node, "group offloading cannot be switched on")?;
    super::refuse_if_compiled(node, "group offloading cannot be switched on", false)?;
    remove_group_offloading(node).map(drop)
}

/// Undoes [`apply_group_offloading`]. The weights are then on the offload device, those left to files in memory again.
/// Says whether there was anything to undo.
///
/// # Errors
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory) where weights that were left to files have no room; the offloading is still on then.
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

    fn brings(&self, kind: Kind) -> BroughtWeights {
        let (copied, mapped) = self.residency.bytes(kind);
        BroughtWeights { copied, mapped, begins: self.onloads, ends: self.offloads }
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
