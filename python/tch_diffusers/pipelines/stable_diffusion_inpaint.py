"""Parts of a picture drawn anew with Stable Diffusion 1.x and 2.x, by UNets of 4 channels or of 9.

Mirrors `diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.image_processor import VaeImageProcessor, check_output_type
from tch_diffusers.pipelines.denoising import (
    Callbacks,
    check_numbers,
    check_strength,
    refuse_ip_adapters,
    retrieve_timesteps,
)
from tch_diffusers.pipelines.stable_diffusion_base import StableDiffusionBase
from tch_diffusers.utils import Generators, randn_tensor

__all__ = ["StableDiffusionInpaintPipeline"]


class StableDiffusionInpaintPipeline(StableDiffusionBase):
    """Pictures that are another picture where a mask is black, and new where it is white.

    >>> import torch
    >>> from PIL import Image
    >>> from tch_diffusers.utils import bundled_model
    >>> pipe = StableDiffusionInpaintPipeline.from_pretrained(bundled_model())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> picture, mask = Image.new("RGB", (128, 128), "blue"), Image.new("L", (128, 128))
    >>> mask.paste(255, (32, 32, 96, 96))
    >>> generator = torch.Generator().manual_seed(7)
    >>> prompt = "a red circle on a blue background"
    >>> pipe(prompt, picture, mask, num_inference_steps=2, generator=generator).images[0].size
    (128, 128)
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds", "mask", "masked_image_latents"]
    _outdated_option = ("skip_prk_steps", False)

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Turns masks into tensors of zeros and ones."""
        return VaeImageProcessor(
            self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def check_inputs(
        self,
        prompt: Any,
        image: Any,
        mask_image: Any,
        height: int,
        width: int,
        strength: float,
        callback_steps: int | None = None,
        output_type: str = "pil",
        negative_prompt: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        padding_mask_crop: int | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        check_strength(strength)
        self._check_size(height, width)
        seen = callback_on_step_end_tensor_inputs
        self._check_prompts(prompt, callback_steps, negative_prompt, prompt_embeds, negative_prompt_embeds, seen)
        if padding_mask_crop is None:
            return
        from PIL import Image

        for name, one in (("image", image), ("mask_image", mask_image)):
            if not isinstance(one, Image.Image):
                raise ValueError(f"`padding_mask_crop` needs a PIL image for `{name}`, not a {type(one).__name__}")
        if image.size != mask_image.size:
            raise ValueError(f"`padding_mask_crop` needs a mask of the picture's size, {image.size}, not {mask_image.size}")
        if output_type != "pil":
            raise ValueError(f"`padding_mask_crop` needs the `output_type` pil, not {output_type}")

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
        image: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        is_strength_max: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """The latents to begin with; if asked for, the noise in them and the picture's own latents after them."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators were given for a batch of {batch_size}: give one, or one per image")
        self._check_latents(latents, shape)
        image_latents = None
        if return_image_latents or (latents is None and not is_strength_max):
            if image is None or timestep is None:
                raise ValueError("with a `strength` below 1, latents begin with a picture at a timestep: give both")
            image = image.to(device=device, dtype=dtype)
            image_latents = image if image.shape[1] == 4 else self._encode_vae_image(image, generator)
            image_latents = image_latents.repeat(batch_size // image_latents.shape[0], 1, 1, 1)
        if latents is not None:
            noise = latents.to(device)
            latents = noise * self.scheduler.init_noise_sigma
        else:
            noise = randn_tensor(shape, generator, device, dtype)
            if is_strength_max:
                latents = noise * self.scheduler.init_noise_sigma
            else:
                latents = self.scheduler.add_noise(image_latents, noise, timestep)
        outputs: tuple[Any, ...] = (latents,)
        if return_noise:
            outputs += (noise,)
        if return_image_latents:
            outputs += (image_latents,)
        return outputs

    def prepare_mask_latents(
        self,
        mask: torch.Tensor,
        masked_image: torch.Tensor,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        do_classifier_free_guidance: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask in the latents' size and the masked picture's latents, with guidance both twice."""
        factor = self.vae_scale_factor
        mask = torch.nn.functional.interpolate(mask, size=(height // factor, width // factor))
        mask = mask.to(device=device, dtype=dtype)
        masked_image = masked_image.to(device=device, dtype=dtype)
        latents = masked_image if masked_image.shape[1] == 4 else self._encode_vae_image(masked_image, generator)
        mask, latents = (_repeat(name, one, batch_size) for name, one in (("mask_image", mask), ("image", latents)))
        if do_classifier_free_guidance:
            mask, latents = torch.cat([mask] * 2), torch.cat([latents] * 2)
        return mask, latents.to(device=device, dtype=dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = None,
    ) -> Any:
        """Draws `image` anew where `mask_image` is white, as a prompt, or each of a list, says.

        Both are PIL images, arrays or tensors with values in [0, 1], or lists of these. `padding_mask_crop` draws the part
        around the mask, with that many pixels around it, at full size and puts it back. The same generator gives the same
        pictures as in diffusers, and stands where it stands there afterwards.
        """
        callbacks = Callbacks.of(callback_on_step_end, callback_on_step_end_tensor_inputs, callback, callback_steps)
        output_type, images = output_type or "pil", 1 if num_images_per_prompt is None else num_images_per_prompt
        check_output_type(output_type)
        check_numbers(images, num_inference_steps, timesteps, sigmas, guidance_scale=guidance_scale, eta=eta)
        height, width = self._size(height, width)
        self.check_inputs(
            prompt,
            image,
            mask_image,
            height,
            width,
            strength,
            callback_steps,
            output_type,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callbacks.seen,
            padding_mask_crop,
        )
        channels = self.unet_config.in_channels
        latent_channels = self.vae.config.latent_channels
        if channels not in (latent_channels, 2 * latent_channels + 1):
            raise ValueError(f"inpainting needs a UNet of 4 or 9 channels; this one has {channels}")
        region = None
        if padding_mask_crop is not None:
            region = VaeImageProcessor.get_crop_region(mask_image, width, height, pad=padding_mask_crop)
        told: dict[str, Any] = {
            "height": height,
            "width": width,
            "crops_coords": region,
            "resize_mode": "default" if region is None else "fill",
        }
        init_image = self.image_processor.preprocess(image, **told)
        self._check_channels(image, init_image)
        init_image = init_image.to(dtype=torch.float32)
        mask_condition = self.mask_processor.preprocess(mask_image, **told)

        self._begin(guidance_scale, clip_skip, cross_attention_kwargs)
        device, guides = self._execution_device, self.do_classifier_free_guidance
        embeds, negative = self._embeds(prompt, images, negative_prompt, prompt_embeds, negative_prompt_embeds)
        batch = embeds.shape[0] // 2 if guides else embeds.shape[0]
        for name, given in (("image", init_image.shape[0]), ("mask_image", mask_condition.shape[0])):
            if given == 0 or batch % given != 0:
                raise ValueError(f"{given} of `{name}` cannot serve {batch} pictures: give one, or one for each")
        steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        laid_out = len(steps) if timesteps is not None or sigmas is not None else num_inference_steps
        steps, left = self.get_timesteps(laid_out, strength, device)

        sees_mask = channels != latent_channels
        latents, noise, *rest = self.prepare_latents(
            batch,
            latent_channels,
            height,
            width,
            embeds.dtype,
            device,
            generator,
            latents,
            image=init_image,
            timestep=steps[:1].repeat(batch),
            is_strength_max=strength == 1.0,
            return_noise=True,
            return_image_latents=not sees_mask,
        )
        masked = init_image * (mask_condition < 0.5) if masked_image_latents is None else masked_image_latents
        mask, masked_image_latents = self.prepare_mask_latents(
            mask_condition, masked, batch, height, width, embeds.dtype, device, generator, guides
        )
        tensors = {
            "latents": latents,
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "mask": mask,
            "masked_image_latents": masked_image_latents,
        }

        def beside(latent_model_input: torch.Tensor, tensors: dict[str, Any]) -> torch.Tensor:
            return torch.cat([latent_model_input, tensors["mask"], tensors["masked_image_latents"]], dim=1)

        def blend(latents: torch.Tensor, step: int, tensors: dict[str, Any]) -> torch.Tensor:
            kept = rest[0]
            mask = tensors["mask"].chunk(2)[0] if self.do_classifier_free_guidance else tensors["mask"]
            if step < len(steps) - 1:
                kept = self.scheduler.add_noise(kept, noise, torch.tensor([steps[step + 1]]))
            blended: torch.Tensor = (1 - mask) * kept + mask * latents
            return blended

        ways: dict[str, Any] = {"beside": beside} if sees_mask else {"blend": blend}
        latents = self._denoise(tensors, steps, left, generator, eta, callbacks, **ways)
        pictures, flags = self._pictures(latents, output_type, embeds.dtype)
        if region is not None:
            pictures = [self.image_processor.apply_overlay(mask_image, image, one, region) for one in pictures]
        return self._finish(pictures, flags, return_dict)


def _repeat(name: str, batch: torch.Tensor, size: int) -> torch.Tensor:
    """The batch, several times over, until it has `size` items."""
    given = batch.shape[0]
    if given >= size:
        return batch
    if size % given != 0:
        raise ValueError(f"{given} of `{name}` cannot serve {size} pictures: give one, or one for each")
    return batch.repeat(size // given, 1, 1, 1)
