"""What the loops of denoising pipelines share: laying out a run, guidance, and what a call is held to.

Mirrors the functions of `diffusers/pipelines/stable_diffusion/` at 0.42.1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers import schedulers
from tch_diffusers.schedulers import SchedulerMixin
from tch_diffusers.utils import Generators

__all__ = ["Callbacks", "rescale_noise_cfg", "retrieve_latents", "retrieve_timesteps"]

SCHEDULERS = tuple(getattr(schedulers, name) for name in schedulers.__all__ if name.endswith("Scheduler"))


@dataclass
class Callbacks:
    """Whom a call tells of its steps: `on_step_end` sees the tensors named in `seen`; `callback` is its older form."""

    on_step_end: Callable[..., Any] | None
    seen: list[str]
    callback: Callable[..., Any] | None
    callback_steps: int | None

    @classmethod
    def of(cls, on_step_end: Any, seen: list[str] | None, callback: Any, callback_steps: int | None) -> Callbacks:
        """As a call is given them."""
        seen = ["latents"] if seen is None else seen
        return cls(on_step_end, getattr(on_step_end, "tensor_inputs", seen), callback, callback_steps)


def retrieve_timesteps(
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
) -> torch.Tensor:
    """Lays out the run: a number of steps, just these timesteps, or just these noise levels."""
    if timesteps is not None and sigmas is not None:
        raise ValueError("give either `timesteps` or `sigmas`, not both")
    # The library's own schedulers read timesteps on the host: on a device each step would wait for it.
    place = "cpu" if isinstance(scheduler, SchedulerMixin) else device
    custom = {"timesteps": timesteps} if timesteps is not None else {"sigmas": sigmas} if sigmas is not None else {}
    for name in custom:
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(scheduler).__name__} takes no custom {name}: give a number of steps")
    if custom:
        scheduler.set_timesteps(**custom, device=place)
    else:
        scheduler.set_timesteps(num_inference_steps, device=place)
    laid_out: torch.Tensor = scheduler.timesteps
    return laid_out


def retrieve_latents(encoder_output: Any, generator: Generators = None) -> torch.Tensor:
    """Latents drawn at random from what an encoder gives, or those that it gives."""
    if hasattr(encoder_output, "latent_dist"):
        return encoder_output.latent_dist.sample(generator)  # type: ignore[no-any-return]
    return encoder_output.latents  # type: ignore[no-any-return]


def check_numbers(images: int, num_inference_steps: int, timesteps: Any, sigmas: Any, **numbers: float) -> None:
    """Refuses numbers with which every pixel would be NaN, and a run of no pictures or no steps."""
    # Differs from diffusers: there, the picture is black then.
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"`{name}` has to be a finite number, but is {number}")
    if images < 1:
        raise ValueError(f"`num_images_per_prompt` has to be at least 1, but is {images}")
    if timesteps is None and sigmas is None and num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` has to be at least 1, but is {num_inference_steps}")


def check_strength(strength: float) -> None:
    """Refuses a strength that is none."""
    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` has to be between 0 and 1, but is {strength}")


def refuse_ip_adapters(image: Any, embeds: Any) -> None:
    """Refuses what is not there."""
    if image is not None or embeds is not None:
        raise NotImplementedError("IP-Adapters are not supported")


def rescale_noise_cfg(noise_cfg: torch.Tensor, noise_pred_text: torch.Tensor, guidance_rescale: float = 0.0) -> torch.Tensor:
    """Brings the guided prediction's spread back to that of the text's, in part (arXiv:2305.08891, section 3.4)."""
    dims = list(range(1, noise_pred_text.ndim))
    spread_text = noise_pred_text.std(dim=dims, keepdim=True)
    spread = noise_cfg.std(dim=dims, keepdim=True)
    return guidance_rescale * (noise_cfg * (spread_text / spread)) + (1 - guidance_rescale) * noise_cfg


def first(output: Any) -> torch.Tensor:
    """The tensor that counts: a bare one, the first of a tuple, or what an output of any library calls its own."""
    if isinstance(output, torch.Tensor):
        return output
    for name in ("sample", "prev_sample"):
        if hasattr(output, name):
            return getattr(output, name)  # type: ignore[no-any-return]
    return output[0]  # type: ignore[no-any-return]
