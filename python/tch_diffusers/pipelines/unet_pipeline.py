"""What the pipelines whose denoiser is a UNet share, but for their prompts.

Mirrors `diffusers/pipelines/stable_diffusion/` and `diffusers/pipelines/stable_diffusion_xl/` at 0.42.1. The loop is Python,
the models and the schedulers are Rust: whatever can be called may take a component's place, and between two steps Python sees
signals.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from tch_diffusers.configuration_utils import FrozenDict
from tch_diffusers.image_processor import VaeImageProcessor
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.pipelines.denoising import Callbacks, first, rescale_noise_cfg, retrieve_latents
from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tch_diffusers.utils import Generators, randn_tensor
from tch_diffusers.utils.lora import lora_scale_of

__all__ = ["UNetPipeline"]


class UNetPipeline(DiffusionPipeline):
    """A UNet, a VAE and a scheduler, and all that is done with them but for the calls."""

    _callback_tensor_inputs: list[str] = []
    _guidance_scale: float = 7.5
    _guidance_rescale: float = 0.0
    _clip_skip: int | None = None
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "unet":
            if isinstance(value, (str, os.PathLike)):
                value = torch.jit.load(os.fspath(value), map_location=self.device).eval()
            config = getattr(value, "config", None)
            if config is not None:
                self.__dict__["_unet_config"] = config
        super().__setattr__(name, value)

    @property
    def unet_config(self) -> Any:
        """The UNet's configuration; a UNet without one, such as a traced one, takes over that of the UNet before it."""
        config = self.__dict__.get("_unet_config")
        if config is None:
            raise ValueError("the UNet has no `config`: set it, or load a pipeline and put the UNet in its place there")
        return FrozenDict(config) if type(config) is dict else config

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the picture to one of the latents, each way."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Turns what the VAE decodes into pictures."""
        return VaeImageProcessor(self.vae_scale_factor)

    @property
    def guidance_scale(self) -> float:
        """How much the prompt counts, of the call under way; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far guidance's overexposure is corrected, of the call under way."""
        return self._guidance_rescale

    @property
    def clip_skip(self) -> int | None:
        """How many of the text encoder's last layers are left out, of the call under way."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """What attention is told, of the call under way."""
        return self._cross_attention_kwargs

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a step takes two predictions."""
        return self._guidance_scale > 1 and getattr(self.unet_config, "time_cond_proj_dim", None) is None

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the call under way walks."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the steps that remain are left out; a callback may set `_interrupt`."""
        return self._interrupt

    def _own(self, technique: str) -> list[ModelMixin]:
        models = [model for model in (self.unet, self.vae) if isinstance(model, ModelMixin)]
        if not isinstance(self.unet, ModelMixin):
            raise NotImplementedError(f"{technique} needs a UNet with modules; this pipeline's is a {type(self.unet).__name__}")
        return models

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Computes the UNet's attention in slices, which takes less memory and more time."""
        self._own("attention slicing")[0].set_attention_slice(slice_size)

    def disable_attention_slicing(self) -> None:
        """Computes all heads of the UNet's attention at once again."""
        self.enable_attention_slicing(None)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Computes attention by libtorch's memory-efficient kernel; xFormers itself is not needed."""
        for model in self._own("memory-efficient attention"):
            model.enable_xformers_memory_efficient_attention()

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Lets libtorch pick the kernel again."""
        for model in self._own("memory-efficient attention"):
            model.disable_xformers_memory_efficient_attention()

    def set_attention_backend(self, backend: str) -> None:
        """Has the attention of UNet and VAE computed by a backend, such as `_native_flash`."""
        for model in self._own("the choice of an attention backend"):
            model.set_attention_backend(backend)

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Computes queries, keys and values as one product."""
        for wanted, model in zip((unet, vae), self._own("fusing projections")):
            if wanted:
                model.fuse_qkv_projections()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Computes queries, keys and values one after the other again."""
        for wanted, model in zip((unet, vae), self._own("fusing projections")):
            if wanted:
                model.unfuse_qkv_projections()

    def enable_winograd(self) -> None:
        """Computes convolutions on the CPU in float32 with a quarter of the multiplications; close, not equal."""
        for model in self._own("another way of convolution"):
            model.enable_winograd()

    def disable_winograd(self) -> None:
        """Computes convolutions as libtorch does again."""
        for model in self._own("another way of convolution"):
            model.disable_winograd()

    def enable_weights_prepack(self) -> None:
        """Keeps the weights of convolutions on the CPU in oneDNN's own layout: the same bits in less time, for a copy."""
        for model in self._own("packing weights"):
            model.enable_weights_prepack()

    def disable_weights_prepack(self) -> None:
        """Forgets the copies again."""
        for model in self._own("packing weights"):
            model.disable_weights_prepack()

    def enable_vae_slicing(self) -> None:
        """Decodes the pictures of a batch one at a time: `pipe.vae.enable_slicing()`."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decodes whole batches again: `pipe.vae.disable_slicing()`."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decodes large pictures in overlapping tiles: `pipe.vae.enable_tiling()`."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decodes whole pictures again: `pipe.vae.disable_tiling()`."""
        self.vae.disable_tiling()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (arXiv:2309.11497) is not there yet."""
        raise NotImplementedError("FreeU is not supported")

    def _check_prompts(
        self,
        prompt: Any,
        callback_steps: int | None,
        negative_prompt: Any,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        """Refuses prompts and callbacks that do not go together."""
        if callback_steps is not None and (not isinstance(callback_steps, int) or callback_steps <= 0):
            raise ValueError(f"`callback_steps` has to be a positive number, but is {callback_steps}")
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"a callback sees {self._callback_tensor_inputs}, and no {sorted(unknown)}")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either `prompt` or `prompt_embeds`")
        if prompt is not None and not isinstance(prompt, (str, list)):
            raise ValueError(f"`prompt` is a text or a list of texts, not a {type(prompt).__name__}")
        if isinstance(prompt, list) and not prompt:
            raise ValueError("there is no prompt: `prompt` is an empty list")
        if prompt_embeds is not None and prompt_embeds.ndim != 3:
            shape = tuple(prompt_embeds.shape)
            raise ValueError(f"`prompt_embeds` is [batch, tokens, hidden_size], got {shape}")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give either `negative_prompt` or `negative_prompt_embeds`, not both")
        if prompt_embeds is not None and negative_prompt_embeds is not None:
            shape, negative_shape = tuple(prompt_embeds.shape), tuple(negative_prompt_embeds.shape)
            if shape != negative_shape:
                raise ValueError(f"`prompt_embeds` is {shape}, but `negative_prompt_embeds` is {negative_shape}")

    def _check_size(self, height: int, width: int) -> None:
        """Refuses sizes that the VAE does not divide."""
        # Differs from diffusers: there, 8 is enough for a VAE of more, whose pictures are smaller than asked for then.
        multiple = max(8, self.vae_scale_factor)
        if height <= 0 or width <= 0 or height % multiple != 0 or width % multiple != 0:
            raise ValueError(
                f"`height` and `width` have to be above 0 and divisible by {multiple}, but are {height} and {width}"
            )

    @staticmethod
    def _check_latents(latents: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        """Refuses latents of another shape than the noise whose place they take."""
        # Differs from diffusers: there, latents of another height or width are drawn in their own.
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has to be {shape}, but is {tuple(latents.shape)}")
        if latents is not None and not latents.is_floating_point():
            raise ValueError(f"`latents` has to be of a floating-point dtype, but is {latents.dtype}")

    def _begin(
        self,
        guidance_scale: float,
        clip_skip: int | None,
        cross_attention_kwargs: dict[str, Any] | None,
        guidance_rescale: float = 0.0,
    ) -> None:
        if isinstance(self.unet, ModelMixin):
            lora_scale_of(cross_attention_kwargs)
        self._guidance_scale, self._guidance_rescale = guidance_scale, guidance_rescale
        self._clip_skip, self._cross_attention_kwargs, self._interrupt = clip_skip, cross_attention_kwargs, False

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any = None) -> tuple[torch.Tensor, int]:
        """The part of the run that `strength` leaves, and how many steps it has; the scheduler begins there."""
        kept = min(int(num_inference_steps * strength), num_inference_steps)
        # Differs from diffusers: there, image-to-image without a step fails where it adds noise.
        if kept < 1:
            raise ValueError(
                f"a strength of {strength} leaves none of {num_inference_steps} steps: raise `strength` or "
                "`num_inference_steps`"
            )
        first = (num_inference_steps - kept) * getattr(self.scheduler, "order", 1)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return self.scheduler.timesteps[first:], kept

    def _check_channels(self, image: Any, pixels: torch.Tensor) -> None:
        """Refuses pictures whose channels the VAE cannot encode."""
        # Differs from diffusers: there, pictures with transparency are taken for latents.
        first = image[0] if isinstance(image, list) else image
        expected = getattr(self.vae.config, "in_channels", pixels.shape[1])
        if not isinstance(first, torch.Tensor) and pixels.shape[1] != expected:
            raise ValueError(f"pictures of {pixels.shape[1]} channels, where the VAE encodes {expected}: convert them")

    def _encode_vae_image(self, image: torch.Tensor, generator: Generators) -> torch.Tensor:
        """Latents of pictures, scaled as the UNet knows them."""
        scaled: torch.Tensor = self.vae.config.scaling_factor * self._sampled_latents(image, generator)
        return scaled

    def _sampled_latents(self, image: torch.Tensor, generator: Generators) -> torch.Tensor:
        """Latents of pictures as the VAE gives them, drawn by one generator, or each by its own."""
        if isinstance(generator, list):
            if len(generator) < image.shape[0]:
                raise ValueError(f"{len(generator)} generators were given for {image.shape[0]} pictures")
            items = [retrieve_latents(self.vae.encode(image[i : i + 1]), generator[i]) for i in range(image.shape[0])]
            return torch.cat(items, dim=0)
        return retrieve_latents(self.vae.encode(image), generator)

    def _latents_of_noise(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Noise to begin with, or the latents given, scaled as the scheduler wants them."""
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators were given for a batch of {shape[0]}: give one, or one per image")
        self._check_latents(latents, shape)
        latents = randn_tensor(shape, generator, device, dtype) if latents is None else latents.to(device)
        scaled: torch.Tensor = latents * self.scheduler.init_noise_sigma
        return scaled

    def _latents_of_image(
        self, image: torch.Tensor, batch: int, dtype: torch.dtype, device: torch.device, generator: Generators
    ) -> torch.Tensor:
        """The latents of pictures, or these themselves, for a batch, without noise."""
        image = image.to(device=device, dtype=dtype)
        given = image.shape[0]
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators were given for a batch of {batch}: give one, or one per image")
        if given == 0 or batch % given != 0:
            raise ValueError(f"{given} of `image` cannot serve {batch} pictures: give one, or one for each")
        if image.shape[1] == 4:
            latents = image
        else:
            if isinstance(generator, list) and given < batch:
                image = torch.cat([image] * (batch // given), dim=0)
            latents = self._encode_vae_image(image, generator)
        return torch.cat([latents] * (batch // latents.shape[0]), dim=0)

    def _denoise(
        self,
        tensors: dict[str, Any],
        steps: torch.Tensor,
        num_inference_steps: int,
        generator: Generators,
        eta: float,
        callbacks: Callbacks,
        total: int | None = None,
        warmup: int | None = None,
        beside: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor] | None = None,
        blend: Callable[[torch.Tensor, int, dict[str, Any]], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The loop, from the `latents` of `tensors` on. A callback sees `tensors`, and may change them.

        The progress bar stands still for the first `warmup` of the timesteps: as many as there are beyond the steps unless
        given. `beside` puts further channels beside the UNet's input; `blend` changes the latents after the step of a number.
        """
        conditions = {
            "timestep_cond": self._timestep_cond(tensors["latents"]),
            "cross_attention_kwargs": self._cross_attention_kwargs,
        }
        conditions = {name: value for name, value in conditions.items() if value is not None}
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(steps)
        order = getattr(self.scheduler, "order", 1)
        warmup = len(steps) - num_inference_steps * order if warmup is None else warmup
        with self.progress_bar(total=total or num_inference_steps) as bar:
            for i, t in enumerate(steps):
                if self._interrupt:
                    continue
                latents, guides = tensors["latents"], self.do_classifier_free_guidance
                latent_model_input = torch.cat([latents] * 2) if guides else latents
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)
                if beside is not None:
                    latent_model_input = beside(latent_model_input, tensors)
                noise_pred = self._predict(latent_model_input, t, tensors, conditions)
                if guides:
                    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
                    noise_pred = noise_pred_uncond + self._guidance_scale * (noise_pred_text - noise_pred_uncond)
                    if self._guidance_rescale > 0.0:
                        noise_pred = rescale_noise_cfg(noise_pred, noise_pred_text, self._guidance_rescale)
                latents = first(self.scheduler.step(noise_pred, t, latents, **extra))
                tensors["latents"] = latents if blend is None else blend(latents, i, tensors)
                if callbacks.on_step_end is not None:
                    shown = {name: tensors[name] for name in callbacks.seen}
                    tensors.update(callbacks.on_step_end(self, i, t, shown) or {})
                if i == len(steps) - 1 or ((i + 1) > warmup and (i + 1) % order == 0):
                    bar.update()
                    if callbacks.callback is not None and i % (callbacks.callback_steps or 1) == 0:
                        callbacks.callback(i // order, t, tensors["latents"])
        last: torch.Tensor = tensors["latents"]
        return last

    def _predict(
        self, sample: torch.Tensor, t: torch.Tensor, tensors: dict[str, Any], conditions: dict[str, Any]
    ) -> torch.Tensor:
        """What the UNet says in a step."""
        return first(self.unet(sample, t, tensors["prompt_embeds"], **conditions))

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float) -> dict[str, Any]:
        """What this scheduler's `step` takes beside output, timestep and sample."""
        taken = inspect.signature(self.scheduler.step).parameters
        extra = {"eta": eta, "generator": generator}
        return {name: value for name, value in extra.items() if name in taken}

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height is not None and width is not None:
            return height, width
        # Differs from diffusers: there, a height without a width is passed over, and the other way round.
        side = self.unet_config.sample_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        factor = self.vae_scale_factor
        # Differs from diffusers: there, a side of 0 is the model's own.
        return sides[0] * factor if height is None else height, sides[1] * factor if width is None else width

    def _timestep_cond(self, latents: torch.Tensor) -> torch.Tensor | None:
        dim = getattr(self.unet_config, "time_cond_proj_dim", None)
        if dim is None:
            return None
        scale = torch.tensor(self._guidance_scale - 1).repeat(latents.shape[0])
        return self.get_guidance_scale_embedding(scale, dim).to(latents.device, latents.dtype)

    def get_guidance_scale_embedding(
        self, w: torch.Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Guidance scales as embeddings, for models distilled to take them as an input: `[len(w), embedding_dim]`."""
        half = embedding_dim // 2
        step = torch.log(torch.tensor(10000.0)) / (half - 1)
        angles = (w * 1000.0).to(dtype)[:, None] * torch.exp(torch.arange(half, dtype=dtype) * -step)[None]
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
        return torch.nn.functional.pad(embedding, (0, embedding_dim % 2))
