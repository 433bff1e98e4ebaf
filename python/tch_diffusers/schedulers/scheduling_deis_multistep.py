"""DEISMultistepScheduler.

Mirrors `diffusers/schedulers/scheduling_deis_multistep.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config

__all__ = ["DEISMultistepScheduler"]


class DEISMultistepScheduler(SchedulerMixin):
    """DEIS, the diffusion exponential integrator (arXiv:2204.13902), multistep, of order one to three.

    >>> scheduler = DEISMultistepScheduler(beta_schedule="scaled_linear")
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
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None: ...

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None, mu: float | None = None
    ) -> None:
        """Lays out the timesteps of a run, and starts it anew; `mu` shifts those of a flow."""
        self._lay_out(device, steps=num_inference_steps, mu=mu)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one."""
        return self._step(model_output, self._or_last(timestep), sample, return_dict)
