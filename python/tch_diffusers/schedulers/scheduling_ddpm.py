"""DDPMScheduler.

Mirrors `diffusers/schedulers/scheduling_ddpm.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput, Timestep, register_to_config
from tch_diffusers.utils import Generators

__all__ = ["DDPMScheduler"]


class DDPMScheduler(SchedulerMixin):
    """Denoising diffusion probabilistic models (arXiv:2006.11239): random down to timestep 0.

    >>> scheduler = DDPMScheduler(beta_schedule="scaled_linear")
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
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None: ...

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays out the timesteps of a run: a number of them, or just these."""
        _one_of(num_inference_steps, timesteps)
        self._lay_out(device, steps=num_inference_steps, timesteps=timesteps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor, ...]:
        """Goes from `timestep` to the next one, with noise drawn by `generator`."""
        return self._step(model_output, timestep, sample, return_dict, generator)

    def previous_timestep(self, timestep: Timestep) -> Timestep:
        """The timestep that a step from `timestep` goes to; below 0 after the last one."""
        if self.num_inference_steps is None:
            return timestep - 1
        return _after(self.timesteps, timestep)

    def _get_variance(self, t: int, predicted_variance: Any = None, variance_type: str | None = None) -> torch.Tensor:
        alphas, prev_t = self.alphas_cumprod, int(self.previous_timestep(t))
        alpha, alpha_prev = alphas[t], alphas[prev_t] if prev_t >= 0 else torch.tensor(1.0)
        beta = 1 - alpha / alpha_prev
        variance = torch.clamp((1 - alpha_prev) / (1 - alpha) * beta, min=1e-20)
        return beta if (variance_type or self.config.variance_type) == "fixed_large" else variance


def _one_of(num_inference_steps: int | None, timesteps: Any) -> None:
    if (num_inference_steps is None) == (timesteps is None):
        raise ValueError("`set_timesteps` takes either `num_inference_steps` or `timesteps`")


def _after(timesteps: torch.Tensor, timestep: Timestep) -> torch.Tensor:
    index = int((timesteps == timestep).nonzero()[0])
    return timesteps[index + 1] if index + 1 < len(timesteps) else torch.tensor(-1)
