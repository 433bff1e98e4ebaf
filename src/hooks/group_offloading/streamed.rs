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
        for member in group.hooked() {
            let offloads = group.offload_leader.path() == member.path();
            let hook = StreamedGroup { transport: transport.clone(), group: number, offloads };
            member.add_outer_hook(GROUP_OFFLOADING, hook);
        }
    }
    node.add_outer_hook(GROUP_OFFLOADING_ROOT, StreamedRoot(transport));
    Ok(())
}

/// Around each module of a group. Whichever runs first brings the weights, so that another order than the usual one finds
/// them too.
#[derive(Debug)]
struct StreamedGroup<D: TransferDevice> {
    transport: Arc<Transport<D>>,
    group: usize,
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

    fn brings(&self, kind: Kind) -> BroughtWeights {
        BroughtWeights { copied: self.0.most_at_once(kind), mapped: 0, begins: true, ends: true }
    }

    fn detach(&self) -> Result<()> {
        self.0.dissolve()
    }
}
