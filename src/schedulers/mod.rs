//! Noise schedules and the solvers that walk them, one file each, named as in diffusers.

mod scheduling_utils;

pub use scheduling_utils::{Scheduler, SchedulerOutput, StepOptions, Timesteps};
