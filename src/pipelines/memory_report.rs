//! The ledger: what a pipeline's weights take, what its last call took, and what was saved.

use super::parts::PipelineModel;
use crate::error::Result;
use crate::models::memory::{MemoryEstimate, WeightMemory, cast_saving, human_bytes, offload_saving, weight_memory};
use crate::torch::{DeviceExt, MemoryTracker, peak_resident, resident};
use serde::Serialize;
use std::fmt;
use tch::Device;

/// The parts of a call that are measured and, but for the encoding of a picture, estimated.
pub(super) const ENCODE_PROMPT: &str = "encode prompt";
pub(super) const ENCODE_IMAGE: &str = "encode image";
pub(super) const DENOISE: &str = "denoise";
pub(super) const DECODE: &str = "decode";
pub(super) const CHECK: &str = "check";

/// The most that one part of a call had allocated at once, in bytes above what there was before the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageMemory {
    /// `encode prompt`, `encode image`, `denoise`, `decode` or, with a safety checker, `check`.
    pub name: String,
    /// Activations and workspaces, and weights that were copied for the work.
    pub peak: i64,
}

/// What a call took on the device where it was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallMemory {
    /// As torch names it.
    pub device: String,
    /// The call's parts that were come to, in their order.
    pub stages: Vec<StageMemory>,
}

impl CallMemory {
    /// The most that was allocated at once, in bytes above what there was before the call.
    #[must_use]
    pub fn peak(&self) -> i64 {
        self.stages.iter().map(|stage| stage.peak).max().unwrap_or(0)
    }
}

/// What a technique that is switched on saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saving {
    /// The technique, in words.
    pub technique: String,
    /// The model it is switched on for.
    pub component: String,
    /// Bytes at the peak of the model's own work; negative where it takes more than it saves, as slices of attention may
    /// beside a kernel that needs no memory for scores.
    pub bytes: i64,
}

impl Saving {
    pub(super) fn new(technique: &str, component: &str, bytes: i64) -> Self {
        Self { technique: technique.into(), component: component.into(), bytes }
    }
}

/// What a pipeline's `memory_report` says. It prints as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// The weights of each model on each device.
    pub weights: Vec<WeightMemory>,
    /// What the last call took; none before the first.
    pub last_call: Option<CallMemory>,
    /// What that call was expected to take with what is switched on now; none before the first call, where a UNet cannot be
    /// looked into, or for pipelines that are not estimated.
    pub estimate: Option<MemoryEstimate>,
    /// What is saved, technique by technique. That of slices and tiles is reckoned for the size of the last call.
    pub savings: Vec<Saving>,
    /// Bytes of the whole process in memory; none but on Linux.
    pub resident: Option<u64>,
    /// The most of that there ever was; none but on Linux.
    pub peak_resident: Option<u64>,
}

/// Measures a call, part by part.
#[derive(Debug)]
pub(super) struct Watch {
    device: Device,
    /// None where memory cannot be watched, which is no reason for a call to fail.
    tracker: Option<MemoryTracker>,
    /// The names of the call's parts.
    names: &'static [&'static str],
    stages: Vec<StageMemory>,
}

impl Watch {
    pub(super) fn start(device: Device, names: &'static [&'static str]) -> Self {
        let tracker = MemoryTracker::start(device);
        if let Err(error) = &tracker {
            tracing::debug!("memory is not measured: {error}");
        }
        Self { device, tracker: tracker.ok(), names, stages: vec![] }
    }

    /// Ends the part that is under way.
    pub(super) fn end_stage(&mut self) {
        let name = self.names.get(self.stages.len()).copied().unwrap_or_default();
        let peak = self.tracker.as_ref().map(|tracker| {
            let peak = tracker.peak()?;
            tracker.reset_peak().map(|()| peak)
        });
        if let Some(Ok(peak)) = peak {
            self.stages.push(StageMemory { name: name.into(), peak });
        }
    }

    /// What was measured; after a failure, up to there.
    pub(super) fn finish(mut self, failed: bool) -> Option<CallMemory> {
        if failed {
            self.end_stage();
        }
        self.tracker.as_ref()?;
        Some(CallMemory { device: self.device.torch_name(), stages: self.stages })
    }
}

impl MemoryReport {
    /// The report on these models and this call, with what their offloading and casting saves.
    pub(super) fn new(models: &[PipelineModel], last_call: Option<CallMemory>) -> Result<Self> {
        let nodes: Vec<_> = models.iter().map(|model| (model.name, &model.node)).collect();
        let mut savings = vec![];
        for (name, node) in &nodes {
            if let Some((technique, bytes)) = offload_saving(node, node.dtype())? {
                savings.push(Saving::new(technique, name, bytes));
            }
            match cast_saving(node, node.dtype()) {
                0 => (),
                bytes => savings.push(Saving::new("layerwise casting", name, bytes)),
            }
        }
        let (weights, estimate) = (weight_memory(&nodes)?, None);
        Ok(Self { weights, last_call, estimate, savings, resident: resident(), peak_resident: peak_resident() })
    }

    fn write_weights(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16}{:<8}", "weights", "device")?;
        ["resident", "pinned", "mapped", "8 bits", "packed"].iter().try_for_each(|head| write!(f, "{head:>12}"))?;
        writeln!(f)?;
        for line in &self.weights {
            write!(f, "{:<16}{:<8}", line.component, line.device)?;
            let numbers = [line.resident, line.pinned, line.mapped, line.quantized, line.packed].map(shown);
            numbers.iter().try_for_each(|number| write!(f, "{number:>12}"))?;
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_call(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(call) = &self.last_call else { return Ok(()) };
        let title = format!("last call, {}", call.device);
        writeln!(f, "\n{title:<24}{:>12}{:>12}", "measured", "estimated")?;
        for stage in &call.stages {
            let estimated = self.estimate.as_ref().and_then(|estimate| estimate.stage(&stage.name));
            let estimated = estimated.map_or_else(|| "-".into(), |stage| human_bytes(stage.allocated()));
            writeln!(f, "{:<24}{:>12}{estimated:>12}", stage.name, human_bytes(stage.peak))?;
        }
        if let Some(estimate) = &self.estimate {
            writeln!(f, "{:<24}{:>12}{:>12}", "with weights", "", human_bytes(estimate.peak()))?;
        }
        Ok(())
    }

    fn write_savings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.savings.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{:<24}{:<16}{:>12}", "technique", "model", "saves")?;
        for Saving { technique, component, bytes } in &self.savings {
            writeln!(f, "{technique:<24}{component:<16}{:>12}", human_bytes(*bytes))?;
        }
        Ok(())
    }
}

/// Bytes for people, and nothing for none.
fn shown(bytes: i64) -> String {
    if bytes == 0 { "-".into() } else { human_bytes(bytes) }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_weights(f)?;
        self.write_call(f)?;
        self.write_savings(f)?;
        if let Some((now, peak)) = self.resident.zip(self.peak_resident) {
            let [now, peak] = [now, peak].map(|bytes| human_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)));
            writeln!(f, "\nthe process: {now} in memory, {peak} at most")?;
        }
        Ok(())
    }
}
