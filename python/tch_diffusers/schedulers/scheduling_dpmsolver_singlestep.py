"""DPMSolverSinglestepScheduler.

Mirrors `diffusers/schedulers/scheduling_dpmsolver_singlestep.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.configuration_utils import from_json
from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["DPMSolverSinglestepScheduler"]


class DPMSolverSinglestepScheduler(SchedulerMixin):
    """DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (arXiv:2211.01095), singlestep, of order one to three.

    >>> scheduler = DPMSolverSinglestepScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> scheduler.config.lower_order_final
    True
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
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None: ...

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays out the timesteps of a run: a number of them, or just these; `mu` shifts those of a flow.

        `lower_order_final` is set where the number of steps or the final noise level need it.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("`set_timesteps` takes either `num_inference_steps` or `timesteps`")
        self._lay_out(device, steps=num_inference_steps, timesteps=timesteps, mu=mu)
        self.register_to_config(lower_order_final=from_json(self._core.config())["lower_order_final"])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one; the stochastic algorithm draws noise by `generator`."""
        return self._step(model_output, self._or_last(timestep), sample, return_dict, generator)
