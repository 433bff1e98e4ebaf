"""What the pipelines of Stable Diffusion 1.x and 2.x share (Rombach et al. 2022, arXiv:2112.10752).

Mirrors `diffusers/pipelines/stable_diffusion/` at 0.42.1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Optional

import torch

from tch_diffusers.loaders import StableDiffusionLoraLoaderMixin
from tch_diffusers.models import AutoencoderKL, CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, UNet2DConditionModel
from tch_diffusers.pipelines.denoising import SCHEDULERS, first
from tch_diffusers.pipelines.prompts import repeat_embeds, texts_of, tokenize
from tch_diffusers.pipelines.safety_checker import StableDiffusionSafetyChecker
from tch_diffusers.pipelines.single_file import MODELS, SingleFile
from tch_diffusers.pipelines.unet_pipeline import UNetPipeline
from tch_diffusers.schedulers import SchedulerMixin
from tch_diffusers.utils import BaseOutput, Generators, logger
from tch_diffusers.utils.hub import HUB_ARGUMENTS
from tch_diffusers.utils.lora import scaled

__all__ = ["StableDiffusionBase", "StableDiffusionPipelineOutput"]

FEATURE_EXTRACTORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")


@dataclass(eq=False)
class StableDiffusionPipelineOutput(BaseOutput):
    """What a call gives."""

    images: Any
    nsfw_content_detected: Optional[list[bool]] = None


class StableDiffusionBase(UNetPipeline, StableDiffusionLoraLoaderMixin):
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
            texts = texts_of(prompt or [])
            prompt_embeds = self._embed(texts, int(self.tokenizer.model_max_length), device, clip_skip, warn=True)
        batch = batch or prompt_embeds.shape[0]
        dtype = getattr(self.text_encoder, "dtype", prompt_embeds.dtype)
        prompt_embeds = repeat_embeds(prompt_embeds.to(device, dtype), num_images_per_prompt)
        if not do_classifier_free_guidance:
            return prompt_embeds, negative_prompt_embeds
        if negative_prompt_embeds is None:
            negative = _negative_texts(prompt, negative_prompt, batch)
            negative_prompt_embeds = self._embed(negative, prompt_embeds.shape[1], device)
        return prompt_embeds, repeat_embeds(negative_prompt_embeds.to(device, dtype), num_images_per_prompt)

    def _embed(
        self, texts: list[str], max_length: int, device: torch.device, clip_skip: int | None = None, warn: bool = False
    ) -> torch.Tensor:
        ids, mask = tokenize(self.tokenizer, texts, max_length, warn)
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
        decoded = first(self.vae.decode(latents / self.vae.config.scaling_factor))
        checked, flags = self.run_safety_checker(decoded, self._execution_device, dtype)
        brought = None if flags is None else [not flag for flag in flags]
        return self.image_processor.postprocess(checked, output_type, brought), flags

    def _finish(self, image: Any, flags: list[bool] | None, return_dict: bool) -> Any:
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(image, flags) if return_dict else (image, flags)


def _negative_texts(prompt: Any, negative_prompt: Any, batch: int) -> list[str]:
    if negative_prompt is None:
        return [""] * batch
    if prompt is not None and type(prompt) is not type(negative_prompt):
        raise TypeError("`negative_prompt` has to be a text where `prompt` is one, and a list where it is a list")
    texts = texts_of(negative_prompt)
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
