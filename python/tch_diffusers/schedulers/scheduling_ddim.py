"""DDIMScheduler.

Mirrors `diffusers/schedulers/scheduling_ddim.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["DDIMScheduler"]


class DDIMScheduler(SchedulerMixin):
    """Denoising diffusion implicit models (arXiv:2010.02502): a deterministic walk or, with `eta`, anything up to DDPM's random one.

    >>> scheduler = DDIMScheduler(beta_schedule="scaled_linear")
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
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None: ...

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lays out the timesteps of a run, and starts it anew."""
        self._lay_out(device, steps=num_inference_steps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one; `eta` of 0 is deterministic, 1 is DDPM."""
        options: dict[str, Any] = {"eta": eta, "use_clipped_model_output": use_clipped_model_output}
        return self._step(model_output, timestep, sample, return_dict, generator, variance_noise, **options)

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """The share of signal after the last step."""
        return torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]

    def _get_variance(self, timestep: int, prev_timestep: int) -> torch.Tensor:
        alphas = self.alphas_cumprod
        alpha, alpha_prev = alphas[timestep], alphas[prev_timestep] if prev_timestep >= 0 else self.final_alpha_cumprod
        return ((1 - alpha_prev) / (1 - alpha)) * (1 - alpha / alpha_prev)
