"""Picture to picture with Stable Diffusion 1.x and 2.x (Meng et al. 2021, "SDEdit", arXiv:2108.01073).

Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.image_processor import check_output_type
from tch_diffusers.pipelines.denoising import (
    Callbacks,
    check_numbers,
    check_strength,
    refuse_ip_adapters,
    retrieve_timesteps,
)
from tch_diffusers.pipelines.stable_diffusion_base import StableDiffusionBase
from tch_diffusers.utils import Generators, randn_tensor

__all__ = ["StableDiffusionImg2ImgPipeline"]


class StableDiffusionImg2ImgPipeline(StableDiffusionBase):
    """Pictures from a picture and a prompt.

    >>> import torch
    >>> from PIL import Image
    >>> from tch_diffusers.utils import bundled_model
    >>> pipe = StableDiffusionImg2ImgPipeline.from_pretrained(bundled_model())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> sketch = Image.new("RGB", (128, 128), "blue")
    >>> generator = torch.Generator().manual_seed(7)
    >>> prompt = "a red circle on a blue background"
    >>> pipe(prompt, image=sketch, strength=0.5, num_inference_steps=4, generator=generator).images[0].size
    (128, 128)
    """

    def check_inputs(
        self,
        prompt: Any,
        strength: float,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        check_strength(strength)
        seen = callback_on_step_end_tensor_inputs
        self._check_prompts(prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds, seen)

    def prepare_latents(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators = None,
    ) -> torch.Tensor:
        """The picture's latents, with noise as it is at `timestep`."""
        latents = self._latents_of_image(image, batch_size * num_images_per_prompt, dtype, device, generator)
        noise = randn_tensor(tuple(latents.shape), generator, device, dtype)
        noised: torch.Tensor = self.scheduler.add_noise(latents, noise, timestep)
        return noised

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float | None = 0.0,
        generator: Generators = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> Any:
        """Draws pictures of a prompt, or of each of a list, that start from `image` with `strength` of the noise.

        `image` is a PIL image, an array or a tensor with values in [0, 1], latents, or a list of these. The same generator
        gives the same pictures as in diffusers, and stands where it stands there afterwards.
        """
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        output_type, images = output_type or "pil", 1 if num_images_per_prompt is None else num_images_per_prompt
        check_output_type(output_type)
        guidance_scale = 7.5 if guidance_scale is None else guidance_scale
        count, eta = 50 if num_inference_steps is None else num_inference_steps, eta or 0.0
        check_numbers(images, count, timesteps, sigmas, guidance_scale=guidance_scale, eta=eta)
        self.check_inputs(
            prompt,
            strength,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callbacks.seen,
        )
        pixels = self.image_processor.preprocess(image)
        self._check_channels(image, pixels)
        self._begin(guidance_scale, clip_skip, cross_attention_kwargs)
        device, guides = self._execution_device, self.do_classifier_free_guidance
        embeds, negative = self._embeds(prompt, images, negative_prompt, prompt_embeds, negative_prompt_embeds)
        batch = embeds.shape[0] // 2 if guides else embeds.shape[0]
        steps = retrieve_timesteps(self.scheduler, count, device, timesteps, sigmas)
        laid_out = len(steps) if timesteps is not None or sigmas is not None else count
        steps, left = self.get_timesteps(laid_out, strength, device)
        latents = self.prepare_latents(pixels, steps[:1].repeat(batch), batch, 1, embeds.dtype, device, generator)
        tensors = {"latents": latents, "prompt_embeds": embeds, "negative_prompt_embeds": negative}
        latents = self._denoise(tensors, steps, left, generator, eta, callbacks)
        return self._finish(*self._pictures(latents, output_type, embeds.dtype), return_dict)
