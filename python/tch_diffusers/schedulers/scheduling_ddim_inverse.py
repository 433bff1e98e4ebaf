"""DDIMInverseScheduler.

Mirrors `diffusers/schedulers/scheduling_ddim_inverse.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config

__all__ = ["DDIMInverseScheduler"]


class DDIMInverseScheduler(SchedulerMixin):
    """DDIM backwards (arXiv:2010.02502): from a picture to the noise that DDIM draws it from.

    >>> scheduler = DDIMInverseScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps.tolist()
    [0, 250, 500, 750]
    """

    _deprecated_kwargs = ["set_alpha_to_zero"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        **kwargs: Any,
    ) -> None: ...

    def _build(self, config: dict[str, Any]) -> None:
        super()._build(config)
        self.timesteps = self.timesteps.flip(0)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lays out the timesteps of a run, which go up, and starts it anew."""
        self._lay_out(device, steps=num_inference_steps)

    def step(
        self, model_output: torch.Tensor, timestep: Timestep, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes up to `timestep` from the one below."""
        return self._step(model_output, timestep, sample, return_dict)

    @property
    def initial_alpha_cumprod(self) -> torch.Tensor:
        """The share of signal before the first step."""
        return torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]
