//! Noise schedules and the solvers that walk them, one file each, named as in diffusers.

mod arrays;
mod betas;
mod cursor;
mod half_log_snr;
mod levels;
mod midpoint_run;
mod noise_run;
mod quadrature;
mod registry;
mod scheduling_ddim;
mod scheduling_ddim_inverse;
mod scheduling_ddpm;
mod scheduling_deis_multistep;
mod scheduling_dpmsolver_multistep;
mod scheduling_dpmsolver_singlestep;
mod scheduling_euler_ancestral_discrete;
mod scheduling_euler_discrete;
mod scheduling_flow_match_euler_discrete;
mod scheduling_heun_discrete;
mod scheduling_k_dpm_2_ancestral_discrete;
mod scheduling_k_dpm_2_discrete;
mod scheduling_lcm;
mod scheduling_lms_discrete;
mod scheduling_pndm;
mod scheduling_unipc_multistep;
mod scheduling_utils;
mod settings;
mod sigmas;
mod solver_run;
mod spacing;
mod step_math;
mod variance_preserving;

pub use betas::{BetaSchedule, training_alphas_cumprod, training_betas};
pub use registry::{SchedulerKind, scheduler_from_config, scheduler_from_pretrained};
pub use scheduling_ddim::DDIMScheduler;
pub use scheduling_ddim_inverse::DDIMInverseScheduler;
pub use scheduling_ddpm::DDPMScheduler;
pub use scheduling_deis_multistep::DEISMultistepScheduler;
pub use scheduling_dpmsolver_multistep::DPMSolverMultistepScheduler;
pub use scheduling_dpmsolver_singlestep::DPMSolverSinglestepScheduler;
pub use scheduling_euler_ancestral_discrete::EulerAncestralDiscreteScheduler;
pub use scheduling_euler_discrete::EulerDiscreteScheduler;
pub use scheduling_flow_match_euler_discrete::FlowMatchEulerDiscreteScheduler;
pub use scheduling_heun_discrete::HeunDiscreteScheduler;
pub use scheduling_k_dpm_2_ancestral_discrete::KDPM2AncestralDiscreteScheduler;
pub use scheduling_k_dpm_2_discrete::KDPM2DiscreteScheduler;
pub use scheduling_lcm::LCMScheduler;
pub use scheduling_lms_discrete::LMSDiscreteScheduler;
pub use scheduling_pndm::PNDMScheduler;
pub use scheduling_unipc_multistep::UniPCMultistepScheduler;
pub use scheduling_utils::{
    Churn, PredictionType, SCHEDULER_CONFIG_NAME, Scheduler, SchedulerMixin, SchedulerOutput, StepOptions, Timesteps,
};
pub use settings::load_scheduler_config;
pub use sigmas::FinalSigmasType;
pub use spacing::TimestepSpacing;
