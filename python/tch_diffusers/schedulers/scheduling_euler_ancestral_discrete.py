"""EulerAncestralDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_euler_ancestral_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_euler_discrete import _refuse_numbers_of_steps
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["EulerAncestralDiscreteScheduler"]


class EulerAncestralDiscreteScheduler(SchedulerMixin):
    """Euler's method with fresh noise after each step, as in k-diffusion.

    >>> scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    4
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None: ...

    _timestep_dtype = torch.float32

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """What pure noise of variance 1 is multiplied by to start a run."""
        return torch.tensor(self._core.init_noise_sigma)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lays out the timesteps of a run, and starts it anew."""
        self._lay_out(device, steps=num_inference_steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one, with noise drawn by `generator`."""
        _refuse_numbers_of_steps(timestep)
        return self._step(model_output, timestep, sample, return_dict, generator)
