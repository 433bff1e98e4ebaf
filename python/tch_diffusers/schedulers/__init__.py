"""Noise schedules and the solvers that walk them, named as in diffusers."""

from tch_diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tch_diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from tch_diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from tch_diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from tch_diffusers.schedulers.scheduling_pndm import PNDMScheduler
from tch_diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

__all__ = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
    "SchedulerMixin",
    "SchedulerOutput",
    "UniPCMultistepScheduler",
]
