"""LMSDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_lms_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, register_to_config

__all__ = ["LMSDiscreteScheduler"]


class LMSDiscreteScheduler(SchedulerMixin):
    """A linear multistep method of order four on the probability flow ODE, as in k-diffusion.

    >>> scheduler = LMSDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    4
    """

    _timestep_dtype = torch.float32

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
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
        order: int = 4,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one by the last `order` derivatives."""
        return self._step(model_output, timestep, sample, return_dict, order=order)
