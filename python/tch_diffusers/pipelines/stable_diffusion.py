"""Text to picture with Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752).

Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.image_processor import check_output_type
from tch_diffusers.pipelines.denoising import Callbacks, check_numbers, refuse_ip_adapters, retrieve_timesteps
from tch_diffusers.pipelines.stable_diffusion_base import StableDiffusionBase, StableDiffusionPipelineOutput
from tch_diffusers.utils import Generators

__all__ = ["StableDiffusionPipeline", "StableDiffusionPipelineOutput"]


class StableDiffusionPipeline(StableDiffusionBase):
    """Text to picture.

    >>> import torch
    >>> from tch_diffusers.utils import bundled_model
    >>> pipe = StableDiffusionPipeline.from_pretrained(bundled_model())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> generator = torch.Generator().manual_seed(7)
    >>> pipe("a yellow star on a black background", num_inference_steps=2, generator=generator).images[0].size
    (128, 128)
    """

    def check_inputs(
        self,
        prompt: Any,
        height: int,
        width: int,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        self._check_size(height, width)
        seen = callback_on_step_end_tensor_inputs
        self._check_prompts(prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds, seen)

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise to begin with, or the latents given, scaled as the scheduler wants them."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, height // factor, width // factor)
        return self._latents_of_noise(shape, dtype, device, generator, latents)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> Any:
        """Draws pictures of a prompt, or of each of a list.

        The same generator gives the same pictures as in diffusers, and stands where it stands there afterwards.
        `callback_on_step_end(pipe, step, timestep, tensors)` sees the tensors that it names, and may return others.
        """
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        output_type, images = output_type or "pil", 1 if num_images_per_prompt is None else num_images_per_prompt
        check_output_type(output_type)
        numbers = {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale, "eta": eta}
        check_numbers(images, num_inference_steps, timesteps, sigmas, **numbers)
        height, width = self._size(height, width)
        self.check_inputs(
            prompt, height, width, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds, callbacks.seen
        )
        self._begin(guidance_scale, clip_skip, cross_attention_kwargs, guidance_rescale)
        device, guides = self._execution_device, self.do_classifier_free_guidance
        embeds, negative = self._embeds(prompt, images, negative_prompt, prompt_embeds, negative_prompt_embeds)
        batch = embeds.shape[0] // 2 if guides else embeds.shape[0]
        steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        channels = self.unet_config.in_channels
        latents = self.prepare_latents(batch, channels, height, width, embeds.dtype, device, generator, latents)
        tensors = {"latents": latents, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
        total = len(steps) if timesteps or sigmas else None
        latents = self._denoise(tensors, steps, num_inference_steps, generator, eta, callbacks, total)
        return self._finish(*self._pictures(latents, output_type, embeds.dtype), return_dict)
