"""Text to picture with Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952).

Mirrors `diffusers/pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.image_processor import check_output_type
from tch_diffusers.pipelines.denoising import Callbacks, check_numbers, refuse_ip_adapters
from tch_diffusers.pipelines.stable_diffusion_xl_base import StableDiffusionXLBase, StableDiffusionXLPipelineOutput
from tch_diffusers.utils import Generators

__all__ = ["StableDiffusionXLPipeline", "StableDiffusionXLPipelineOutput"]

Size = tuple[int, int]


class StableDiffusionXLPipeline(StableDiffusionXLBase):
    """Text to picture.

    `StableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", torch_dtype=torch.float16)` reads it
    from the Hub. Where embeddings are given, text encoders may be left out, as from this tiny one with random weights:

    >>> import torch
    >>> from tch_diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    >>> blocks = dict(down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], layers_per_block=1)
    >>> size = dict(sample_size=8, block_out_channels=[32], norm_num_groups=8, attention_head_dim=4, cross_attention_dim=16)
    >>> added = dict(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=52)
    >>> unet = UNet2DConditionModel.from_config({**blocks, **size, **added})
    >>> vae = AutoencoderKL.from_config(dict(block_out_channels=[8], norm_num_groups=4))
    >>> pipe = StableDiffusionXLPipeline(vae, None, None, None, None, unet, EulerDiscreteScheduler())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> embeds = dict(prompt_embeds=torch.randn(1, 5, 16), pooled_prompt_embeds=torch.randn(1, 4))
    >>> pipe(**embeds, num_inference_steps=2, output_type="pt").images.shape
    torch.Size([1, 3, 8, 8])
    """

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
        self._take(components, add_watermarker, force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)

    def check_inputs(
        self,
        prompt: Any,
        prompt_2: Any,
        height: int,
        width: int,
        callback_steps: int | None = None,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        self._check_size(height, width)
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

    def _get_add_time_ids(
        self, sizes: tuple[Size, Size, Size], negative_sizes: tuple[Size | None, Size, Size | None], pooled: torch.Tensor
    ) -> torch.Tensor:
        """Original size, crop and target size as the UNet is told of them, with guidance the negative ones first."""
        ids = [number for size in sizes for number in size]
        self._check_added(len(ids), pooled)
        original, crops, target = negative_sizes
        negative = ids if original is None or target is None else [*original, *crops, *target]
        return torch.tensor([negative, ids] if self.do_classifier_free_guidance else [ids])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
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
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> Any:
        """Draws pictures of a prompt, or of each of a list.

        `prompt_2` is what the second text encoder reads. Sizes and crops are height first, in pixels. With `denoising_end`
        and an `output_type` of `latent` a refiner goes on where this ends. The same generator gives the same pictures as in
        diffusers, and stands where it stands there afterwards.
        """
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        output_type, images = output_type or "pil", 1 if num_images_per_prompt is None else num_images_per_prompt
        check_output_type(output_type)
        numbers = {
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "eta": eta,
            "denoising_end": denoising_end or 0.0,
        }
        check_numbers(images, num_inference_steps, timesteps, sigmas, **numbers)
        height, width = self._size(height, width)
        self.check_inputs(
            prompt,
            prompt_2,
            height,
            width,
            callback_steps,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callbacks.seen,
        )
        self._begin(guidance_scale, clip_skip, cross_attention_kwargs, guidance_rescale)
        self._denoising_end, device = denoising_end, self._execution_device
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
        embeds = self._embeds_of_call(prompts, images)
        dtype, batch = embeds.prompt_embeds.dtype, embeds.prompt_embeds.shape[0]
        count = self._lay_out(num_inference_steps, timesteps, sigmas)
        channels = self.unet_config.in_channels
        latents = self.prepare_latents(batch, channels, height, width, dtype, device, generator, latents)
        own: Size = (height, width)
        ids = self._get_add_time_ids(
            (original_size or own, crops_coords_top_left, target_size or own),
            (negative_original_size, negative_crops_coords_top_left, negative_target_size),
            embeds.pooled_prompt_embeds,
        )
        # As in diffusers, the rows of negative prompts and of pictures alternate, which is only seen where they differ.
        told = {"add_time_ids": ids.to(device, dtype).repeat(batch, 1)}
        steps, count, warmup = self._until_end(self.scheduler.timesteps, count)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        tensors = {"latents": latents, **self._tensors(embeds, device), **told}
        latents = self._denoise(tensors, steps, count, generator, eta, callbacks, warmup=warmup)
        return self._finish(latents, output_type, return_dict)
