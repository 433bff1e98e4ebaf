//! The hooks of group offloading with a lane for copies.

use super::{GROUP_OFFLOADING, GROUP_OFFLOADING_ROOT, GroupOffloading, OffloadGroup};
use crate::error::Result;
use crate::hooks::transport::{TransferDevice, Transport};
use crate::nn::{BroughtWeights, Hook, Next, Node};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Puts the hooks on. The weights are on the CPU.
pub(super) fn attach<D: TransferDevice>(
    node: &Node,
    options: &GroupOffloading,
    groups: &[OffloadGroup],
    device: D,
) -> Result<()> {
    let weights = groups.iter().map(|group| options.weights(group)).collect::<Result<Vec<_>>>()?;
    if !options.offload_to_disk {
        node.to_device(Device::Cpu)?;
    }
    let named = groups.iter().map(|group| group.id.clone()).zip(weights).collect();
    let transport = Arc::new(Transport::new(device, named, options.terms())?);
    for (number, group) in groups.iter().enumerate() {
        let is_around = |other: &OffloadGroup| is_below(&other.onload_leader, &group.onload_leader);
        let is_innermost = !groups.iter().any(is_around);
        for member in group.hooked() {
            let is = |leader: &Node| leader.path() == member.path();
            let (onloads, offloads) = (is(&group.onload_leader), is(&group.offload_leader));
            let hook = StreamedGroup { transport: transport.clone(), group: number, is_innermost, onloads, offloads };
            member.add_outer_hook(GROUP_OFFLOADING, hook);
        }
    }
    node.add_outer_hook(GROUP_OFFLOADING_ROOT, StreamedRoot(transport));
    Ok(())
}

fn is_below(node: &Node, other: &Node) -> bool {
    let rest = node.path().strip_prefix(other.path());
    rest.is_some_and(|rest| rest.starts_with('.') || (other.path().is_empty() && !rest.is_empty()))
}

/// Around each module of a group. Whichever runs first brings the weights, so that another order than the usual one finds
/// them too.
#[derive(Debug)]
struct StreamedGroup<D: TransferDevice> {
    transport: Arc<Transport<D>>,
    group: usize,
    /// Whether no other group comes and goes while this one stays.
    is_innermost: bool,
    /// Whether the module is the group's first.
    onloads: bool,
    /// Whether the module is the group's last, which sends the weights away.
    offloads: bool,
}

impl<D: TransferDevice> Hook for StreamedGroup<D> {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let entered = self.transport.enter(self.group);
        let outputs = entered
            .and_then(|()| self.transport.take_along(inputs))
            .and_then(|inputs| next.run(&inputs))
            .and_then(|outputs| self.transport.keep(self.group, outputs));
        if self.offloads || outputs.is_err() {
            self.transport.leave(self.group);
        }
        outputs
    }

    fn execution_device(&self) -> Option<Device> {
        Some(self.transport.device())
    }

    fn brings(&self, kind: Kind) -> BroughtWeights {
        let copied = self.transport.bytes(self.group, kind, self.is_innermost);
        BroughtWeights { copied, mapped: 0, begins: self.onloads, ends: self.offloads }
    }

    fn compute_dtype(&self) -> Option<Kind> {
        self.transport.compute_dtype(self.group)
    }
}

/// Around the model: one run of the transport.
#[derive(Debug)]
struct StreamedRoot<D: TransferDevice>(Arc<Transport<D>>);

impl<D: TransferDevice> Hook for StreamedRoot<D> {
    fn around(&self, _: &Node, inputs: &[Tensor], next: Next<'_>) -> Result<Vec<Tensor>> {
        let _turn = self.0.begin()?;
        let outputs = self.0.take_along(inputs).and_then(|inputs| next.run(&inputs));
        self.0.end(outputs.is_ok());
        outputs
    }

    fn detach(&self) -> Result<()> {
        self.0.dissolve()
    }
}
