"""KDPM2AncestralDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_k_dpm_2_ancestral_discrete.py` at 0.42.1.
"""

from __future__ import annotations

import torch

from tch_diffusers.schedulers.scheduling_k_dpm_2_discrete import _MidpointScheduler
from tch_diffusers.schedulers.scheduling_utils import SchedulerOutput, Timestep
from tch_diffusers.utils import Generators

__all__ = ["KDPM2AncestralDiscreteScheduler"]


class KDPM2AncestralDiscreteScheduler(_MidpointScheduler):
    """DPM-Solver-2 with fresh noise after each step, as in k-diffusion.

    >>> scheduler = KDPM2AncestralDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    7
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the midpoint of a step, or from there to its end with noise drawn by `generator`."""
        return self._step(model_output, timestep, sample, return_dict, generator)
