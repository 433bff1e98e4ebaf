"""KDPM2AncestralDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_k_dpm_2_ancestral_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_heun_discrete import _refuse_other_training
from tch_diffusers.schedulers.scheduling_k_dpm_2_discrete import timestep_dtype
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["KDPM2AncestralDiscreteScheduler"]


class KDPM2AncestralDiscreteScheduler(SchedulerMixin):
    """DPM-Solver-2 with fresh noise after each step, as in k-diffusion.

    >>> scheduler = KDPM2AncestralDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    7
    """

    order = 2

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None: ...

    @property
    def _timestep_dtype(self) -> torch.dtype:  # type: ignore[override]
        return timestep_dtype(self)

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """What pure noise of variance 1 is multiplied by to start a run."""
        return torch.tensor(self._core.init_noise_sigma)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Lays out the timesteps of a run, and starts it anew."""
        _refuse_other_training(self, num_train_timesteps)
        self._lay_out(device, steps=num_inference_steps)

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
