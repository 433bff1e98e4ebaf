"""Text to picture with FLUX.1 (Black Forest Labs 2024).

Mirrors `diffusers/pipelines/flux/pipeline_flux.py` at 0.42.1. The loop is Python, the models and the scheduler are Rust:
whatever can be called may take a component's place, and between two steps Python sees signals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers.image_processor import VaeImageProcessor, check_output_type
from tch_diffusers.models import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    FluxTransformer2DModel,
    T5EncoderModel,
    T5Tokenizer,
)
from tch_diffusers.pipelines.denoising import SCHEDULERS, refuse_ip_adapters
from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tch_diffusers.pipelines.prompts import input_ids, texts_of
from tch_diffusers.schedulers import SchedulerMixin
from tch_diffusers.utils import BaseOutput, Generators, logger, randn_tensor

__all__ = ["FluxPipeline", "FluxPipelineOutput", "calculate_shift"]


@dataclass(eq=False)
class FluxPipelineOutput(BaseOutput):
    """What a call gives."""

    images: Any


def calculate_shift(
    image_seq_len: int,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """`mu`, by which noise levels are shifted, for a picture of `image_seq_len` tokens.

    >>> calculate_shift(256)
    0.5
    """
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return image_seq_len * slope + (base_shift - slope * base_seq_len)


class FluxPipeline(DiffusionPipeline):
    """Text to picture with FLUX.1.

    `FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell", torch_dtype=torch.bfloat16)` reads it from the Hub.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _component_classes = {
        "scheduler": {scheduler.__name__: scheduler for scheduler in SCHEDULERS},
        "vae": {"AutoencoderKL": AutoencoderKL},
        "text_encoder": {"CLIPTextModel": CLIPTextModel},
        "tokenizer": {"CLIPTokenizer": CLIPTokenizer, "CLIPTokenizerFast": CLIPTokenizer},
        "text_encoder_2": {"T5EncoderModel": T5EncoderModel},
        "tokenizer_2": {"T5Tokenizer": T5Tokenizer, "T5TokenizerFast": T5Tokenizer},
        "transformer": {"FluxTransformer2DModel": FluxTransformer2DModel},
        "image_encoder": {},
        "feature_extractor": {},
    }
    _callback_tensor_inputs = ["latents", "prompt_embeds"]
    default_sample_size = 128

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        transformer: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self._guidance_scale = 3.5
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the picture to one of the latents, each way; 8 without a VAE."""
        return 8 if self.vae is None else 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Turns what the VAE decodes into pictures."""
        return VaeImageProcessor(self.vae_scale_factor * 2)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale that the transformer is told, of the call under way."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """How many timesteps the call has."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the steps that remain are left out; a callback may set `_interrupt`."""
        return self._interrupt

    @property
    def _execution_device(self) -> torch.device:
        device: Any = getattr(self.transformer, "execution_device", None)
        return device if isinstance(device, torch.device) else self.device

    def encode_prompt(
        self,
        prompt: str | list[str],
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        lora_scale: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The embeddings of prompts, token by token and whole, and the places of the tokens."""
        if lora_scale is not None:
            raise NotImplementedError("LoRA is not supported")
        device = device or self._execution_device
        if prompt_embeds is None or pooled_prompt_embeds is None:
            for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
                if getattr(self, name) is None:
                    raise ValueError(f"there is no `{name}`: give embeddings in place of texts")
            texts = texts_of(prompt)
            second = texts_of(prompt_2 or texts)
            limit = self.tokenizer.model_max_length
            pooled = self.text_encoder(input_ids(self.tokenizer, texts, limit, self.text_encoder, warn=True)).pooler_output
            ids = input_ids(self.tokenizer_2, second, max_sequence_length, self.text_encoder_2, warn=True)
            embeds = self.text_encoder_2(ids)[0]
            pooled = pooled.to(device, self.text_encoder.dtype).repeat_interleave(num_images_per_prompt, 0)
            embeds = embeds.to(device, self.text_encoder_2.dtype).repeat_interleave(num_images_per_prompt, 0)
        else:
            embeds, pooled = prompt_embeds, pooled_prompt_embeds
        dtype = (self.transformer if self.text_encoder is None else self.text_encoder).dtype
        places = torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype)
        return embeds, pooled, places

    def check_inputs(
        self,
        prompt: Any,
        prompt_2: Any,
        height: int,
        width: int,
        negative_prompt: Any = None,
        negative_prompt_2: Any = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> None:
        """Refuses arguments that do not go together."""
        unit = self.vae_scale_factor * 2
        if height < unit or width < unit:
            raise ValueError(f"`height` and `width` have to be at least {unit}, but are {height} and {width}")
        if height % unit or width % unit:
            logger.warning("`height` and `width` have to be divisible by %d: the picture is of the next smaller size", unit)
        unknown = set(callback_on_step_end_tensor_inputs or []) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"a callback sees {self._callback_tensor_inputs}, and no {sorted(unknown)}")
        if (prompt is None) == (prompt_embeds is None) or (prompt_2 is not None and prompt_embeds is not None):
            raise ValueError("give either `prompt` or `prompt_embeds`")
        for text in (prompt, prompt_2):
            if text is not None and not isinstance(text, (str, list)):
                raise ValueError(f"`prompt` is a text or a list of texts, not a {type(text).__name__}")
        if negative_prompt_embeds is not None and (negative_prompt is not None or negative_prompt_2 is not None):
            raise ValueError("give either `negative_prompt` or `negative_prompt_embeds`, not both")
        if prompt_embeds is not None and pooled_prompt_embeds is None:
            raise ValueError("`prompt_embeds` go with `pooled_prompt_embeds`")
        if negative_prompt_embeds is not None and negative_pooled_prompt_embeds is None:
            raise ValueError("`negative_prompt_embeds` go with `negative_pooled_prompt_embeds`")
        if max_sequence_length is not None and max_sequence_length > 512:
            raise ValueError(f"`max_sequence_length` cannot be greater than 512 but is {max_sequence_length}")

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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise to begin with, or the latents given, packed, and the places of their tokens."""
        rows, columns = (side // (self.vae_scale_factor * 2) for side in (height, width))
        places = torch.zeros(rows, columns, 3)
        places[..., 1] += torch.arange(rows)[:, None]
        places[..., 2] += torch.arange(columns)[None, :]
        places = places.reshape(rows * columns, 3).to(device, dtype)
        if latents is not None:
            return latents.to(device, dtype), places
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators were given for a batch of {batch_size}: give one, or one per image")
        noise = randn_tensor((batch_size, num_channels_latents, 2 * rows, 2 * columns), generator, device, dtype)
        return self._pack_latents(noise, batch_size, num_channels_latents, 2 * rows, 2 * columns), places

    @staticmethod
    def _pack_latents(latents: torch.Tensor, batch_size: int, channels: int, height: int, width: int) -> torch.Tensor:
        squares = latents.view(batch_size, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return squares.reshape(batch_size, (height // 2) * (width // 2), channels * 4)

    @staticmethod
    def _unpack_latents(latents: torch.Tensor, height: int, width: int, vae_scale_factor: int) -> torch.Tensor:
        batch, _, channels = latents.shape
        rows, columns = (side // (vae_scale_factor * 2) for side in (height, width))
        squares = latents.view(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return squares.reshape(batch, channels // 4, 2 * rows, 2 * columns)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        true_cfg_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.5,
        num_images_per_prompt: int | None = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        negative_ip_adapter_image: Any = None,
        negative_ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        max_sequence_length: int = 512,
    ) -> Any:
        """Draws pictures of a prompt, or of each of a list.

        The same generator gives the same pictures as in diffusers. `guidance_scale` is told to a distilled model such as
        FLUX.1-dev; `true_cfg_scale` above 1 draws away from `negative_prompt` by a second prediction in each step.
        """
        refuse_ip_adapters(ip_adapter_image, ip_adapter_image_embeds)
        refuse_ip_adapters(negative_ip_adapter_image, negative_ip_adapter_image_embeds)
        if joint_attention_kwargs:
            raise NotImplementedError(f"`joint_attention_kwargs` {sorted(joint_attention_kwargs)} are not supported")
        output_type, images = output_type or "pil", num_images_per_prompt or 1
        check_output_type(output_type)
        own = self.default_sample_size * self.vae_scale_factor
        height, width = height or own, width or own
        self.check_inputs(
            prompt, prompt_2, height, width, negative_prompt, negative_prompt_2, prompt_embeds, negative_prompt_embeds,
            pooled_prompt_embeds, negative_pooled_prompt_embeds, callback_on_step_end_tensor_inputs, max_sequence_length,
        )  # fmt: skip
        self._guidance_scale, self._interrupt = guidance_scale, False
        device, lengths = self._execution_device, max_sequence_length
        embeds, pooled, places = self.encode_prompt(
            prompt or "", prompt_2, device, images, prompt_embeds, pooled_prompt_embeds, lengths
        )
        negative = None
        has_negative = negative_prompt is not None or negative_prompt_embeds is not None
        if true_cfg_scale > 1 and has_negative:
            given = (negative_prompt_embeds, negative_pooled_prompt_embeds)
            negative = self.encode_prompt(negative_prompt or "", negative_prompt_2, device, images, *given, lengths)
        texts = len(prompt) if isinstance(prompt, list) else 1 if prompt is not None else embeds.shape[0]
        channels = self.transformer.config.in_channels // 4
        latents, image_places = self.prepare_latents(
            texts * images, channels, height, width, embeds.dtype, device, generator, latents
        )
        steps = self._lay_out(num_inference_steps, sigmas, latents.shape[1], device)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full([1], guidance_scale, device=device, dtype=torch.float32).expand(latents.shape[0])
        self.scheduler.set_begin_index(0)
        with self.progress_bar(total=len(steps)) as bar:
            for i, t in enumerate(steps):
                if self._interrupt:
                    continue
                time = t.to(device).expand(latents.shape[0]).to(latents.dtype) / 1000
                told = {"hidden_states": latents, "timestep": time, "guidance": guidance, "img_ids": image_places}
                velocity = self._predict(told, embeds, pooled, places)
                if negative is not None:
                    away = self._predict(told, *negative)
                    velocity = away + true_cfg_scale * (velocity - away)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    seen = {"latents": latents, "prompt_embeds": embeds}
                    seen = {name: seen[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, t, seen) or {}
                    latents, embeds = changed.pop("latents", latents), changed.pop("prompt_embeds", embeds)
                bar.update()
        picture: Any = latents
        if output_type != "latent":
            unpacked = self._unpack_latents(latents, height, width, self.vae_scale_factor)
            unpacked = unpacked / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
            picture = self.image_processor.postprocess(self.vae.decode(unpacked, return_dict=False)[0], output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(picture) if return_dict else (picture,)

    def _predict(self, told: dict[str, Any], embeds: Any, pooled: Any, places: Any) -> torch.Tensor:
        text = {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": places}
        velocity: torch.Tensor = self.transformer(**told, **text, return_dict=False)[0]
        return velocity

    def _lay_out(self, steps: int, sigmas: list[float] | None, tokens: int, device: torch.device) -> torch.Tensor:
        config = self.scheduler.config
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        # The library's own schedulers read timesteps on the host: on a device each step would wait for it.
        place = "cpu" if isinstance(self.scheduler, SchedulerMixin) else device
        if config.get("use_flow_sigmas"):
            self.scheduler.set_timesteps(steps, device=place, mu=mu)
        else:
            levels = _even(steps) if sigmas is None else sigmas
            self.scheduler.set_timesteps(sigmas=levels, device=place, mu=mu)
        laid_out: torch.Tensor = self.scheduler.timesteps
        self._num_timesteps = len(laid_out)
        return laid_out


def _even(steps: int) -> list[float]:
    """`numpy.linspace(1.0, 1 / steps, steps)`."""
    last = 1 / steps
    step = (last - 1.0) / (steps - 1) if steps > 1 else 0.0
    levels = [i * step + 1.0 for i in range(steps)]
    return [*levels[:-1], last]
