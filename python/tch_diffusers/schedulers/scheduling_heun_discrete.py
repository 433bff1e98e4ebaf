"""HeunDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_heun_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config

__all__ = ["HeunDiscreteScheduler"]


class HeunDiscreteScheduler(SchedulerMixin):
    """Heun's method on the probability flow ODE (arXiv:2206.00364, algorithm 1): two calls of the model a step.

    >>> scheduler = HeunDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    7
    """

    order = 2
    _timestep_dtype = torch.float32

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None: ...

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """What pure noise of variance 1 is multiplied by to start a run."""
        return torch.tensor(self._core.init_noise_sigma)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays out the timesteps of a run: a number of them, or just these."""
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("`set_timesteps` takes either `num_inference_steps` or `timesteps`")
        _refuse_other_training(self, num_train_timesteps)
        self._lay_out(device, steps=num_inference_steps, timesteps=timesteps)
        if timesteps is not None:
            self.num_inference_steps = len(timesteps)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one, or at a step's second call, goes there anew."""
        return self._step(model_output, timestep, sample, return_dict)


def _refuse_other_training(scheduler: SchedulerMixin, num_train_timesteps: int | None) -> None:
    if num_train_timesteps not in (None, scheduler.config.num_train_timesteps):
        raise NotImplementedError("`num_train_timesteps` is an option of the configuration: give it to `from_config`")
