"""KDPM2DiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_k_dpm_2_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_heun_discrete import _refuse_other_training
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config

__all__ = ["KDPM2DiscreteScheduler"]


class _MidpointScheduler(SchedulerMixin):
    """What the two schedulers after DPM-Solver-2 have in common."""

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
        # As NumPy leaves them; diffusers does not change that here.
        config = self.config
        replaced = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
        return torch.float64 if replaced else torch.float32

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


class KDPM2DiscreteScheduler(_MidpointScheduler):
    """DPM-Solver-2 as in k-diffusion: two calls of the model a step, the second one halfway.

    >>> scheduler = KDPM2DiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    7
    """

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the midpoint of a step, or from there to its end."""
        return self._step(model_output, timestep, sample, return_dict)
