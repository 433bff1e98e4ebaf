"""EulerDiscreteScheduler.

Mirrors `diffusers/schedulers/scheduling_euler_discrete.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["EulerDiscreteScheduler"]


class EulerDiscreteScheduler(SchedulerMixin):
    """Euler's method on the probability flow ODE (arXiv:2206.00364, algorithm 2).

    >>> scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
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
        interpolation_type: str = "linear",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None: ...

    _timestep_dtype = torch.float32

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """What pure noise of variance 1 is multiplied by to start a run."""
        return torch.tensor(self._core.init_noise_sigma)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """Lays out the timesteps of a run: a number of them, just these, or just these noise levels."""
        given = [run for run in (num_inference_steps, timesteps, sigmas) if run is not None]
        if not given or (timesteps is not None and sigmas is not None):
            raise ValueError("`set_timesteps` takes one of `num_inference_steps`, `timesteps` and `sigmas`")
        self._lay_out(device, steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one, with `s_churn` of fresh noise stirred in."""
        _refuse_numbers_of_steps(timestep)
        churn: dict[str, Any] = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._step(model_output, timestep, sample, return_dict, generator, **churn)


def _refuse_numbers_of_steps(timestep: float | torch.Tensor) -> None:
    if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
        raise ValueError("`timestep` is one of `scheduler.timesteps`, not the number of a step")
