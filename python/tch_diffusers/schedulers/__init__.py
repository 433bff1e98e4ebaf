"""Noise schedules and the solvers that walk them, named as in diffusers."""

from tch_diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tch_diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from tch_diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tch_diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from tch_diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from tch_diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from tch_diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from tch_diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from tch_diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tch_diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from tch_diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from tch_diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from tch_diffusers.schedulers.scheduling_lcm import LCMScheduler
from tch_diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from tch_diffusers.schedulers.scheduling_pndm import PNDMScheduler
from tch_diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

__all__ = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SchedulerMixin",
    "SchedulerOutput",
    "UniPCMultistepScheduler",
]
