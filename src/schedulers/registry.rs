//! Schedulers by name.

use super::{
    DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler,
    LCMScheduler, LMSDiscreteScheduler, PNDMScheduler, Scheduler, SchedulerMixin, UniPCMultistepScheduler,
    load_scheduler_config,
};
use crate::configuration_utils::ConfigMap;
use crate::error::{Error, Result};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The schedulers there are.
///
/// # Examples
/// ```
/// use tch_diffusers::schedulers::{DDIMScheduler, Scheduler, SchedulerKind, SchedulerMixin};
/// let ddim = DDIMScheduler::from_config(&Default::default())?;
/// let unipc = "unipc".parse::<SchedulerKind>()?.from_config(ddim.config())?;
/// assert_eq!(unipc.class_name(), "UniPCMultistepScheduler");
/// # Ok::<(), tch_diffusers::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchedulerKind {
    /// [`DDIMScheduler`], in short `ddim`.
    DDIM,
    /// [`DDPMScheduler`], in short `ddpm`.
    DDPM,
    /// [`PNDMScheduler`], in short `pndm`.
    PNDM,
    /// [`LMSDiscreteScheduler`], in short `lms`.
    LMSDiscrete,
    /// [`EulerDiscreteScheduler`], in short `euler`.
    EulerDiscrete,
    /// [`HeunDiscreteScheduler`], in short `heun`.
    HeunDiscrete,
    /// [`EulerAncestralDiscreteScheduler`], in short `euler_a`.
    EulerAncestralDiscrete,
    /// [`DPMSolverMultistepScheduler`], in short `dpmsolver`.
    DPMSolverMultistep,
    /// [`DPMSolverSinglestepScheduler`], in short `dpm_single`.
    DPMSolverSinglestep,
    /// [`KDPM2DiscreteScheduler`], in short `dpm2`.
    KDPM2Discrete,
    /// [`KDPM2AncestralDiscreteScheduler`], in short `dpm2_a`.
    KDPM2AncestralDiscrete,
    /// [`DEISMultistepScheduler`], in short `deis`.
    DEISMultistep,
    /// [`UniPCMultistepScheduler`], in short `unipc`.
    UniPCMultistep,
    /// [`LCMScheduler`], in short `lcm`.
    LCM,
    /// [`DDIMInverseScheduler`], in short `ddim_inverse`.
    DDIMInverse,
    /// [`FlowMatchEulerDiscreteScheduler`], in short `flow_match_euler`.
    FlowMatchEulerDiscrete,
}

impl SchedulerKind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::DDIM,
        Self::DDPM,
        Self::PNDM,
        Self::LMSDiscrete,
        Self::EulerDiscrete,
        Self::HeunDiscrete,
        Self::EulerAncestralDiscrete,
        Self::DPMSolverMultistep,
        Self::DPMSolverSinglestep,
        Self::KDPM2Discrete,
        Self::KDPM2AncestralDiscrete,
        Self::DEISMultistep,
        Self::UniPCMultistep,
        Self::LCM,
        Self::DDIMInverse,
        Self::FlowMatchEulerDiscrete,
    ];

    /// diffusers' name of the class.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::DDIM => DDIMScheduler::CLASS_NAME,
            Self::DDPM => DDPMScheduler::CLASS_NAME,
            Self::PNDM => PNDMScheduler::CLASS_NAME,
            Self::LMSDiscrete => LMSDiscreteScheduler::CLASS_NAME,
            Self::EulerDiscrete => EulerDiscreteScheduler::CLASS_NAME,
            Self::HeunDiscrete => HeunDiscreteScheduler::CLASS_NAME,
            Self::EulerAncestralDiscrete => EulerAncestralDiscreteScheduler::CLASS_NAME,
            Self::DPMSolverMultistep => DPMSolverMultistepScheduler::CLASS_NAME,
            Self::DPMSolverSinglestep => DPMSolverSinglestepScheduler::CLASS_NAME,
            Self::KDPM2Discrete => KDPM2DiscreteScheduler::CLASS_NAME,
            Self::KDPM2AncestralDiscrete => KDPM2AncestralDiscreteScheduler::CLASS_NAME,
            Self::DEISMultistep => DEISMultistepScheduler::CLASS_NAME,
            Self::UniPCMultistep => UniPCMultistepScheduler::CLASS_NAME,
            Self::LCM => LCMScheduler::CLASS_NAME,
            Self::DDIMInverse => DDIMInverseScheduler::CLASS_NAME,
            Self::FlowMatchEulerDiscrete => FlowMatchEulerDiscreteScheduler::CLASS_NAME,
        }
    }

    /// The name on the command line.
    #[must_use]
    pub fn short_name(self) -> &'static str {
        match self {
            Self::DDIM => "ddim",
            Self::DDPM => "ddpm",
            Self::PNDM => "pndm",
            Self::LMSDiscrete => "lms",
            Self::EulerDiscrete => "euler",
            Self::HeunDiscrete => "heun",
            Self::EulerAncestralDiscrete => "euler_a",
            Self::DPMSolverMultistep => "dpmsolver",
            Self::DPMSolverSinglestep => "dpm_single",
            Self::KDPM2Discrete => "dpm2",
            Self::KDPM2AncestralDiscrete => "dpm2_a",
            Self::DEISMultistep => "deis",
            Self::UniPCMultistep => "unipc",
            Self::LCM => "lcm",
            Self::DDIMInverse => "ddim_inverse",
            Self::FlowMatchEulerDiscrete => "flow_match_euler",
        }
    }

    /// A scheduler of this kind from any scheduler's configuration.
    ///
    /// # Errors
    /// As of [`SchedulerMixin::from_config`].
    #[allow(clippy::wrong_self_convention, reason = "the kind stands for diffusers' class, whose method this is")]
    pub fn from_config(self, config: &ConfigMap) -> Result<Box<dyn Scheduler>> {
        Ok(match self {
            Self::DDIM => Box::new(DDIMScheduler::from_config(config)?),
            Self::DDPM => Box::new(DDPMScheduler::from_config(config)?),
            Self::PNDM => Box::new(PNDMScheduler::from_config(config)?),
            Self::LMSDiscrete => Box::new(LMSDiscreteScheduler::from_config(config)?),
            Self::EulerDiscrete => Box::new(EulerDiscreteScheduler::from_config(config)?),
            Self::HeunDiscrete => Box::new(HeunDiscreteScheduler::from_config(config)?),
            Self::EulerAncestralDiscrete => Box::new(EulerAncestralDiscreteScheduler::from_config(config)?),
            Self::DPMSolverMultistep => Box::new(DPMSolverMultistepScheduler::from_config(config)?),
            Self::DPMSolverSinglestep => Box::new(DPMSolverSinglestepScheduler::from_config(config)?),
            Self::KDPM2Discrete => Box::new(KDPM2DiscreteScheduler::from_config(config)?),
            Self::KDPM2AncestralDiscrete => Box::new(KDPM2AncestralDiscreteScheduler::from_config(config)?),
            Self::DEISMultistep => Box::new(DEISMultistepScheduler::from_config(config)?),
            Self::UniPCMultistep => Box::new(UniPCMultistepScheduler::from_config(config)?),
            Self::LCM => Box::new(LCMScheduler::from_config(config)?),
            Self::DDIMInverse => Box::new(DDIMInverseScheduler::from_config(config)?),
            Self::FlowMatchEulerDiscrete => Box::new(FlowMatchEulerDiscreteScheduler::from_config(config)?),
        })
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.class_name())
    }
}

impl FromStr for SchedulerKind {
    type Err = Error;

    /// From diffusers' name of the class, or the name on the command line.
    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|kind| name == kind.class_name() || name == kind.short_name());
        known.ok_or_else(|| {
            let names = Self::ALL.map(|kind| format!("{} ({})", kind.short_name(), kind.class_name())).join(", ");
            Error::Unsupported(format!("unknown scheduler `{name}`: use one of {names}"))
        })
    }
}

/// The scheduler that the configuration names in `_class_name`.
///
/// # Errors
/// [`Error::Config`] without that key, [`Error::Unsupported`] for a class that is not there, or as of
/// [`SchedulerMixin::from_config`].
pub fn scheduler_from_config(config: &ConfigMap) -> Result<Box<dyn Scheduler>> {
    let name = config.get("_class_name").and_then(Value::as_str);
    let name = name.ok_or_else(|| Error::Config("the scheduler's configuration has no `_class_name`".into()))?;
    name.parse::<SchedulerKind>()?.from_config(config)
}

/// The scheduler of the `scheduler_config.json` in `folder`.
///
/// # Errors
/// [`Error::Io`] if the file is not there, or as of [`scheduler_from_config`].
pub fn scheduler_from_pretrained(folder: impl AsRef<Path>) -> Result<Box<dyn Scheduler>> {
    scheduler_from_config(&load_scheduler_config(folder)?)
}
