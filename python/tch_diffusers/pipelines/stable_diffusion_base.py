"""What the pipelines of Stable Diffusion 1.x and 2.x share (Rombach et al. 2022, arXiv:2112.10752).

Mirrors `diffusers/pipelines/stable_diffusion/` at 0.42.1. The loop is Python, the models and the schedulers are Rust: whatever
can be called may take a component's place, and between two steps Python sees signals.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch

from tch_diffusers import _tch_diffusers, schedulers
from tch_diffusers.configuration_utils import FrozenDict
from tch_diffusers.image_processor import VaeImageProcessor
from tch_diffusers.loaders import StableDiffusionLoraLoaderMixin
from tch_diffusers.models import AutoencoderKL, CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, UNet2DConditionModel
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tch_diffusers.pipelines.safety_checker import StableDiffusionSafetyChecker
from tch_diffusers.pipelines.single_file import MODELS, SingleFile
from tch_diffusers.schedulers import SchedulerMixin
from tch_diffusers.utils import BaseOutput, Generators, generators_of, logger, randn_tensor
from tch_diffusers.utils.hub import HUB_ARGUMENTS
from tch_diffusers.utils.lora import lora_scale_of, scaled

__all__ = ["StableDiffusionBase", "StableDiffusionPipelineOutput"]

FEATURE_EXTRACTORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
SCHEDULERS = tuple(getattr(schedulers, name) for name in schedulers.__all__ if name.endswith("Scheduler"))


@dataclass(eq=False)
class StableDiffusionPipelineOutput(BaseOutput):
    """What a call gives."""

    images: Any
    nsfw_content_detected: Optional[list[bool]] = None


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


class StableDiffusionBase(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """The components of Stable Diffusion, and all that is done with them but for the calls."""

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _exclude_from_cpu_offload = ["safety_checker"]
    _component_classes = {
        "vae": {"AutoencoderKL": AutoencoderKL},
        "text_encoder": {"CLIPTextModel": CLIPTextModel},
        "tokenizer": {"CLIPTokenizer": CLIPTokenizer, "CLIPTokenizerFast": CLIPTokenizer},
        "unet": {"UNet2DConditionModel": UNet2DConditionModel},
        "scheduler": {scheduler.__name__: scheduler for scheduler in SCHEDULERS},
        "safety_checker": {"StableDiffusionSafetyChecker": StableDiffusionSafetyChecker},
        "feature_extractor": {name: CLIPImageProcessor for name in FEATURE_EXTRACTORS},
        "image_encoder": {},
    }
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    # An option of the scheduler, and the value that it had at the time of the first releases.
    _outdated_option = ("clip_sample", True)

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
    ) -> None:
        if safety_checker is None and requires_safety_checker:
            logger.warning(
                "there is no safety checker, though this model asks for one: the pictures are not looked at. Mind the licence "
                "of Stable Diffusion, and show no unfiltered pictures in public"
            )
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("a safety checker needs a `feature_extractor`: pass one, or `safety_checker=None`")
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=_up_to_date(scheduler, *self._outdated_option),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self._guidance_scale = 7.5
        self._guidance_rescale = 0.0
        self._clip_skip: int | None = None
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = False

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        prediction_type: str | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Reads a checkpoint of Stable Diffusion 1.x or 2.x in one safetensors file.

        The library knows the configurations, and the tokenizer comes from the Hub; `config`, a folder or repository in
        diffusers' format, has both. A file of Stable Diffusion 2.x for 512 pixels looks like one for 768: it needs
        `prediction_type="epsilon"` and `image_size=512`. A component that is passed in is not read; there is no safety
        checker but one that is passed in.
        """
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        parts = {name: kwargs.pop(name) for name in list(kwargs) if name in cls._component_classes}
        options = {name: kwargs.pop(name) for name in ("requires_safety_checker",) if name in kwargs}
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_single_file takes no {', '.join(kwargs)}")
        file = SingleFile(pretrained_model_link_or_path, config, hub)
        if image_size is not None:
            file.configs["unet"]["sample_size"] = image_size // 8
        cast = dtype or torch_dtype or torch.float32
        for name in MODELS:
            if name not in parts:
                (model,) = cls._component_classes[name].values()
                parts[name] = model.from_config(file.configs[name], file.weights(name, cast))
        if "scheduler" not in parts:
            told = {} if prediction_type is None else {"prediction_type": prediction_type}
            named = file.configs["scheduler"].get("_class_name")
            if named not in cls._component_classes["scheduler"]:
                raise NotImplementedError(f"the scheduler is a {named}, which is not there")
            parts["scheduler"] = cls._component_classes["scheduler"][named].from_config(file.configs["scheduler"], **told)
        if "tokenizer" not in parts:
            parts["tokenizer"] = file.tokenizer()
        if "feature_extractor" not in parts:
            parts["feature_extractor"] = file.feature_extractor()
        options.setdefault("requires_safety_checker", file.requires_safety_checker)
        return cls(**parts, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "unet":
            if isinstance(value, (str, os.PathLike)):
                value = torch.jit.load(os.fspath(value), map_location=self.device).eval()
            config = getattr(value, "config", None)
            if config is not None:
                self.__dict__["_unet_config"] = config
        object.__setattr__(self, name, value)

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

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embeddings of prompts and of negative prompts, each repeated `num_images_per_prompt` times."""
        with scaled(1.0 if lora_scale is None else lora_scale):
            return self._encode_prompt(
                prompt,
                device,
                num_images_per_prompt,
                do_classifier_free_guidance,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                clip_skip,
            )

    def _encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        clip_skip: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = torch.device(device or self._execution_device)
        batch = 1 if isinstance(prompt, str) else len(prompt) if prompt is not None else 0
        if prompt_embeds is None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
            prompt_embeds = self._embed(texts, int(self.tokenizer.model_max_length), device, clip_skip, warn=True)
        batch = batch or prompt_embeds.shape[0]
        dtype = getattr(self.text_encoder, "dtype", prompt_embeds.dtype)
        prompt_embeds = _repeat(prompt_embeds.to(device, dtype), num_images_per_prompt)
        if not do_classifier_free_guidance:
            return prompt_embeds, negative_prompt_embeds
        if negative_prompt_embeds is None:
            negative = _negative_texts(prompt, negative_prompt, batch)
            negative_prompt_embeds = self._embed(negative, prompt_embeds.shape[1], device)
        return prompt_embeds, _repeat(negative_prompt_embeds.to(device, dtype), num_images_per_prompt)

    def _embed(
        self, texts: list[str], max_length: int, device: torch.device, clip_skip: int | None = None, warn: bool = False
    ) -> torch.Tensor:
        if isinstance(self.tokenizer, CLIPTokenizer):
            ids, mask, removed = self.tokenizer.tokenize_for_prompt(texts, max_length)
            if removed and warn:
                logger.warning("CLIP takes at most %d tokens, so this part of the prompt was cut: %s", max_length, removed)
        else:
            cut = {"padding": "max_length", "max_length": max_length, "truncation": True, "return_tensors": "pt"}
            inputs = self.tokenizer(texts, **cut)
            ids, mask = inputs.input_ids, inputs.attention_mask
        ids = ids.to(device)
        told = mask.to(device) if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        if isinstance(self.text_encoder, CLIPTextModel):
            return self.text_encoder.embed(ids, told, clip_skip)
        if clip_skip is None:
            first: torch.Tensor = self.text_encoder(ids, attention_mask=told)[0]
            return first
        states = self.text_encoder(ids, attention_mask=told, output_hidden_states=True).hidden_states
        norm = getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm
        normed: torch.Tensor = norm(states[-(clip_skip + 1)])
        return normed

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

    def _embeds(
        self,
        prompt: Any,
        images: int,
        negative_prompt: Any,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the UNet is given of prompts, with guidance the negative ones first, and these alone once more."""
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            self._execution_device,
            images,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale=(self._cross_attention_kwargs or {}).get("scale"),
            clip_skip=self._clip_skip,
        )
        if self.do_classifier_free_guidance and negative_prompt_embeds is not None:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        return prompt_embeds, negative_prompt_embeds

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
        """Latents of pictures, drawn by one generator, or each by its own, and scaled as the UNet knows them."""
        if isinstance(generator, list):
            if len(generator) < image.shape[0]:
                raise ValueError(f"{len(generator)} generators were given for {image.shape[0]} pictures")
            items = [retrieve_latents(self.vae.encode(image[i : i + 1]), generator[i]) for i in range(image.shape[0])]
            latents = torch.cat(items, dim=0)
        else:
            latents = retrieve_latents(self.vae.encode(image), generator)
        scaled: torch.Tensor = self.vae.config.scaling_factor * latents
        return scaled

    def _denoise(
        self,
        tensors: dict[str, Any],
        steps: torch.Tensor,
        num_inference_steps: int,
        generator: Generators,
        eta: float,
        callbacks: Callbacks,
        total: int | None = None,
        beside: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor] | None = None,
        blend: Callable[[torch.Tensor, int, dict[str, Any]], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The loop, from the `latents` of `tensors` on. A callback sees `tensors`, and may change them.

        `beside` puts further channels beside the UNet's input; `blend` changes the latents after the step of a number.
        """
        conditions = {
            "timestep_cond": self._timestep_cond(tensors["latents"]),
            "cross_attention_kwargs": self._cross_attention_kwargs,
        }
        conditions = {name: value for name, value in conditions.items() if value is not None}
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(steps)
        order = getattr(self.scheduler, "order", 1)
        warmup = len(steps) - num_inference_steps * order
        with self.progress_bar(total=total or num_inference_steps) as bar:
            for i, t in enumerate(steps):
                if self._interrupt:
                    continue
                latents, guides = tensors["latents"], self.do_classifier_free_guidance
                latent_model_input = torch.cat([latents] * 2) if guides else latents
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)
                if beside is not None:
                    latent_model_input = beside(latent_model_input, tensors)
                noise_pred = _first(self.unet(latent_model_input, t, tensors["prompt_embeds"], **conditions))
                if guides:
                    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
                    noise_pred = noise_pred_uncond + self._guidance_scale * (noise_pred_text - noise_pred_uncond)
                    if self._guidance_rescale > 0.0:
                        noise_pred = rescale_noise_cfg(noise_pred, noise_pred_text, self._guidance_rescale)
                latents = _first(self.scheduler.step(noise_pred, t, latents, **extra))
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

    def run_safety_checker(
        self, image: torch.Tensor, device: torch.device | str, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[bool] | None]:
        """The pictures that the VAE decoded, of which the safety checker blackened some, and which; none without one."""
        if self.safety_checker is None:
            return image, None
        shown = self.image_processor.postprocess(image, "pil")
        clip_input = self.feature_extractor(shown, return_tensors="pt").pixel_values.to(device).to(dtype)
        checked, flags = self.safety_checker(images=image, clip_input=clip_input)
        return checked, [bool(flag) for flag in flags]

    def _pictures(self, latents: torch.Tensor, output_type: str, dtype: torch.dtype) -> tuple[Any, list[bool] | None]:
        if output_type == "latent":
            return latents, None
        decoded = _first(self.vae.decode(latents / self.vae.config.scaling_factor))
        checked, flags = self.run_safety_checker(decoded, self._execution_device, dtype)
        brought = None if flags is None else [not flag for flag in flags]
        return self.image_processor.postprocess(checked, output_type, brought), flags

    def _finish(self, image: Any, flags: list[bool] | None, return_dict: bool) -> Any:
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(image, flags) if return_dict else (image, flags)

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

    def _saved_options(self) -> dict[str, Any]:
        return {"requires_safety_checker": bool(self.config.requires_safety_checker)}


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


def _first(output: Any) -> torch.Tensor:
    """The tensor that counts: a bare one, the first of a tuple, or what an output of any library calls its own."""
    if isinstance(output, torch.Tensor):
        return output
    for name in ("sample", "prev_sample"):
        if hasattr(output, name):
            return getattr(output, name)  # type: ignore[no-any-return]
    return output[0]  # type: ignore[no-any-return]


def _repeat(embeds: torch.Tensor, images: int) -> torch.Tensor:
    batch, tokens, _ = embeds.shape
    return embeds.repeat(1, images, 1).view(batch * images, tokens, -1)


def _negative_texts(prompt: Any, negative_prompt: Any, batch: int) -> list[str]:
    if negative_prompt is None:
        return [""] * batch
    if prompt is not None and type(prompt) is not type(negative_prompt):
        raise TypeError("`negative_prompt` has to be a text where `prompt` is one, and a list where it is a list")
    texts = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
    if len(texts) != batch:
        raise ValueError(f"there are {len(texts)} negative prompts for {batch} prompts")
    return texts


def _up_to_date(scheduler: Any, option: str, outdated: bool) -> Any:
    """The scheduler as today's pipelines expect it to be configured: `steps_offset` 1, and `option` not `outdated`."""
    config = scheduler.config
    updates: dict[str, Any] = {}
    if getattr(config, "steps_offset", 1) != 1:
        updates["steps_offset"] = 1
    if getattr(config, option, not outdated) is outdated:
        updates[option] = not outdated
    if not updates:
        return scheduler
    logger.warning("the scheduler's configuration is outdated; %s was set", updates)
    if isinstance(scheduler, SchedulerMixin):
        scheduler.reconfigure(**updates)
    else:
        scheduler._internal_dict = type(config)({**config, **updates})
    return scheduler
