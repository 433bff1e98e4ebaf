"""Picture to picture with Stable Diffusion XL, and the refiner's part of a picture (Podell et al. 2023, arXiv:2307.01952).

Mirrors `diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl_img2img.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.image_processor import check_output_type
from tch_diffusers.pipelines.denoising import Callbacks, check_numbers, check_strength, refuse_ip_adapters
from tch_diffusers.pipelines.stable_diffusion_xl import Size
from tch_diffusers.pipelines.stable_diffusion_xl_base import StableDiffusionXLBase, is_part
from tch_diffusers.utils import Generators, randn_tensor

__all__ = ["StableDiffusionXLImg2ImgPipeline"]


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXLBase):
    """Pictures from a picture and a prompt, or from the latents that the base model leaves to the refiner.

    `StableDiffusionXLImg2ImgPipeline.from_pretrained("stabilityai/stable-diffusion-xl-refiner-1.0")` reads the refiner from
    the Hub, which has one text encoder, and is told an aesthetic score.
    """

    _denoising_start: float | None = None

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        components = {
            "vae": vae,
            "text_encoder": text_encoder,
            "text_encoder_2": text_encoder_2,
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "unet": unet,
            "scheduler": scheduler,
            "image_encoder": image_encoder,
            "feature_extractor": feature_extractor,
        }
        options = {
            "force_zeros_for_empty_prompt": force_zeros_for_empty_prompt,
            "requires_aesthetics_score": requires_aesthetics_score,
        }
        self._take(components, add_watermarker, **options)

    @property
    def denoising_start(self) -> float | None:
        """After what part of the denoising the call under way begins."""
        return self._denoising_start

    def check_inputs(
        self,
        prompt: Any,
        prompt_2: Any,
        strength: float,
        num_inference_steps: int,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        check_strength(strength)
        if not isinstance(num_inference_steps, int) or num_inference_steps <= 0:
            raise ValueError(f"`num_inference_steps` has to be a positive number, but is {num_inference_steps}")
        self._check_both_prompts(
            prompt,
            prompt_2,
            callback_steps,
            negative_prompt,
            negative_prompt_2,
            (prompt_embeds, negative_prompt_embeds),
            (pooled_prompt_embeds, negative_pooled_prompt_embeds),
            callback_on_step_end_tensor_inputs,
        )

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: Any = None, denoising_start: float | None = None
    ) -> tuple[torch.Tensor, int]:
        """The part of the run that `strength` leaves, or that comes after `denoising_start`, and how many steps it has."""
        if denoising_start is None:
            return super().get_timesteps(num_inference_steps, strength, device)
        steps = self.scheduler.timesteps
        left = int((steps < self._cutoff(denoising_start)).sum())
        # A run of second order has each timestep twice but the first, and is not cut between the two.
        if getattr(self.scheduler, "order", 1) == 2 and left % 2 == 0:
            left += 1
        # Differs from diffusers: there, the last step alone is walked.
        if left > len(steps):
            raise ValueError(f"a `denoising_start` of {denoising_start} is before the first step: leave it out")
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(len(steps) - left)
        return steps[len(steps) - left :], left

    def prepare_latents(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators = None,
        add_noise: bool = True,
    ) -> torch.Tensor:
        """The picture's latents; with `add_noise`, with noise as it is at `timestep`."""
        latents = self._latents_of_image(image, batch_size * num_images_per_prompt, dtype, device, generator)
        if not add_noise:
            return latents
        noise = randn_tensor(tuple(latents.shape), generator, device, dtype)
        noised: torch.Tensor = self.scheduler.add_noise(latents, noise, timestep)
        return noised

    def _get_add_time_ids(
        self,
        sizes: tuple[Size, Size, Size],
        negative_sizes: tuple[Size | None, Size, Size | None],
        scores: tuple[float, float],
        pooled: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sizes and crop as the UNet is told of them, and the negative ones: with a score, or with a target size."""
        original, crops, target = sizes
        negative_original, negative_target = negative_sizes[0] or original, negative_sizes[2] or target
        if self.config.requires_aesthetics_score:
            ids = [*original, *crops, scores[0]]
            negative = [*negative_original, *negative_sizes[1], scores[1]]
        else:
            ids = [*original, *crops, *target]
            # As in diffusers, `negative_crops_coords_top_left` counts beside a score alone.
            negative = [*negative_original, *crops, *negative_target]
        self._check_added(len(ids), pooled)
        return torch.tensor([ids]), torch.tensor([negative])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> Any:
        """Draws pictures of a prompt, or of each of a list, that start from `image` with `strength` of the noise.

        `image` is a PIL image, an array or a tensor with values in [0, 1], latents, or a list of these. With
        `denoising_start` it is latents that another pipeline left at its `denoising_end`, and `strength` counts for nothing.
        The same generator gives the same pictures as in diffusers, and stands where it stands there afterwards.
        """
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        output_type, images = output_type or "pil", 1 if num_images_per_prompt is None else num_images_per_prompt
        check_output_type(output_type)
        self.check_inputs(
            prompt,
            prompt_2,
            strength,
            num_inference_steps,
            callback_steps,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callbacks.seen,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        numbers = {
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "eta": eta,
            "denoising_start": denoising_start or 0.0,
            "denoising_end": denoising_end or 0.0,
            "aesthetic_score": aesthetic_score,
            "negative_aesthetic_score": negative_aesthetic_score,
        }
        check_numbers(images, num_inference_steps, timesteps, sigmas, **numbers)
        start, end = denoising_start, denoising_end
        if start is not None and end is not None and is_part(start) and is_part(end) and start >= end:
            raise ValueError(f"`denoising_start` has to be below `denoising_end`, but is {start} beside {end}")
        pixels = self.image_processor.preprocess(image)
        self._check_channels(image, pixels)
        self._begin(guidance_scale, clip_skip, cross_attention_kwargs, guidance_rescale)
        self._denoising_start, self._denoising_end = denoising_start, denoising_end
        prompts = {
            "prompt": prompt,
            "prompt_2": prompt_2,
            "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        device, embeds = self._execution_device, self._embeds_of_call(prompts, images)
        dtype, batch = embeds.prompt_embeds.dtype, embeds.prompt_embeds.shape[0]
        count = self._lay_out(num_inference_steps, timesteps, sigmas)
        steps, count = self.get_timesteps(count, strength, device, start if is_part(start) else None)
        if latents is None:
            at, fresh = steps[:1].repeat(batch), start is None
            latents = self.prepare_latents(pixels, at, batch, 1, dtype, device, generator, fresh)
        else:
            sides = pixels.shape[-2:] if pixels.shape[1] == 4 else [side // self.vae_scale_factor for side in pixels.shape[-2:]]
            self._check_latents(latents, (batch, self.unet_config.in_channels, *sides))
            latents = latents.to(device)
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        own: Size = (height, width)
        ids, negative_ids = self._get_add_time_ids(
            (original_size or own, crops_coords_top_left, target_size or own),
            (negative_original_size, negative_crops_coords_top_left, negative_target_size),
            (aesthetic_score, negative_aesthetic_score),
            embeds.pooled_prompt_embeds,
        )
        rows = [negative_ids, ids] if self.do_classifier_free_guidance else [ids]
        told = {"add_time_ids": torch.cat([row.to(device, dtype).repeat(batch, 1) for row in rows])}
        steps, count, warmup = self._until_end(steps, count)
        tensors = {"latents": latents, **self._tensors(embeds, device), **told}
        latents = self._denoise(tensors, steps, count, generator, eta, callbacks, warmup=warmup)
        return self._finish(latents, output_type, return_dict)
