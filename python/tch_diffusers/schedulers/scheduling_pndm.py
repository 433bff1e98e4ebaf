"""PNDMScheduler.

Mirrors `diffusers/schedulers/scheduling_pndm.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config

__all__ = ["PNDMScheduler"]


class PNDMScheduler(SchedulerMixin):
    """Pseudo numerical methods (arXiv:2202.09778): a linear multistep method of order four on the noise.

    >>> scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True)
    >>> scheduler.set_timesteps(4)
    >>> len(scheduler.timesteps)
    5
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None: ...

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lays out the timesteps of a run, and starts it anew."""
        self._lay_out(device, steps=num_inference_steps)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one, by `step_prk` at first and then by `step_plms`."""
        return self._step(model_output, timestep, sample, return_dict)

    def step_prk(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """One of the four stages of a pseudo Runge-Kutta step."""
        output = SchedulerOutput(self._core.step_prk(model_output, float(timestep), sample))
        return output if return_dict else output.to_tuple()

    def step_plms(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """A pseudo linear multistep step."""
        output = SchedulerOutput(self._core.step_plms(model_output, float(timestep), sample))
        return output if return_dict else output.to_tuple()

    @property
    def prk_timesteps(self) -> torch.Tensor:
        """The timesteps of the Runge-Kutta steps."""
        return torch.tensor(self._core.prk_timesteps(), dtype=torch.float64).to(self._timestep_dtype)

    @property
    def plms_timesteps(self) -> torch.Tensor:
        """The timesteps of the multistep steps."""
        return self.timesteps[len(self.prk_timesteps) :]

    @property
    def ets(self) -> list[torch.Tensor]:
        """The last predictions of the noise, newest last."""
        return self._core.ets()

    @ets.setter
    def ets(self, ets: list[torch.Tensor]) -> None:
        self._core.set_ets(ets)
