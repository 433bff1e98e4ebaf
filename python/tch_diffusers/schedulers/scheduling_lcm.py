"""LCMScheduler.

Mirrors `diffusers/schedulers/scheduling_lcm.py` at 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch

from tch_diffusers.schedulers.scheduling_ddpm import _after, _one_of
from tch_diffusers.schedulers.scheduling_utils import (
    SchedulerMixin,
    SchedulerOutput,
    Timestep,
    _numbers,
    register_to_config,
)
from tch_diffusers.utils import BaseOutput, Generators

__all__ = ["LCMScheduler", "LCMSchedulerOutput"]


@dataclass(eq=False)
class LCMSchedulerOutput(BaseOutput):
    """What a step gives: the sample at the next timestep, and the noise-free one."""

    prev_sample: torch.Tensor
    denoised: Optional[torch.Tensor] = None


class LCMScheduler(SchedulerMixin):
    """Multistep sampling of latent consistency models (arXiv:2310.04378).

    >>> scheduler = LCMScheduler()
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps.tolist()
    [999, 759, 499, 259]
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Any = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ) -> None: ...

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        original_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Lays out the timesteps of a run: a number of those that the model was distilled with, or just these."""
        _one_of(num_inference_steps, timesteps)
        custom = None if timesteps is None else _numbers(timesteps)
        self._core.set_timesteps_of(num_inference_steps, custom, original_inference_steps, strength)
        self._take_timesteps(device)
        self.num_inference_steps = num_inference_steps or len(custom or [])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Timestep,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[torch.Tensor, ...]:
        """Jumps to the noise-free sample, and unless it was the last step, adds noise drawn by `generator`."""
        given = self._step(model_output, timestep, sample, True, generator)
        prev_sample, denoised = given.to_tuple() if isinstance(given, SchedulerOutput) else given
        output = LCMSchedulerOutput(prev_sample, denoised)
        return output if return_dict else output.to_tuple()

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """The share of signal after the last step."""
        return torch.tensor(1.0) if self.config.set_alpha_to_one else self.alphas_cumprod[0]

    def previous_timestep(self, timestep: Timestep) -> Timestep:
        """The timestep that a step from `timestep` goes to; below 0 after the last one."""
        if self.num_inference_steps is None:
            return timestep - 1
        return _after(self.timesteps, timestep)
