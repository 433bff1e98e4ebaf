"""What the pipelines of Stable Diffusion XL share (Podell et al. 2023, arXiv:2307.01952).

Mirrors `diffusers/pipelines/stable_diffusion_xl/` at 0.42.1. The invisible watermark and IP-Adapters are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from tch_diffusers.models import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    UNet2DConditionModel,
)
from tch_diffusers.pipelines.denoising import SCHEDULERS, first, retrieve_timesteps
from tch_diffusers.pipelines.prompts import input_ids, repeat_embeds, texts_of
from tch_diffusers.pipelines.unet_pipeline import UNetPipeline
from tch_diffusers.utils import BaseOutput, Generators, logger
from tch_diffusers.utils.lora import scaled

__all__ = ["StableDiffusionXLBase", "StableDiffusionXLPipelineOutput"]

TOKENIZERS = {"CLIPTokenizer": CLIPTokenizer, "CLIPTokenizerFast": CLIPTokenizer}


@dataclass(eq=False)
class StableDiffusionXLPipelineOutput(BaseOutput):
    """What a call gives."""

    images: Any


@dataclass
class PromptEmbeds:
    """The embeddings of prompts and of negative prompts: token by token, and whole."""

    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor
    negative_pooled_prompt_embeds: torch.Tensor | None


class StableDiffusionXLBase(UNetPipeline, StableDiffusionXLLoraLoaderMixin):
    """The components of Stable Diffusion XL, and all that is done with them but for the calls."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _component_classes = {
        "vae": {"AutoencoderKL": AutoencoderKL},
        "text_encoder": {"CLIPTextModel": CLIPTextModel},
        "text_encoder_2": {"CLIPTextModelWithProjection": CLIPTextModelWithProjection},
        "tokenizer": TOKENIZERS,
        "tokenizer_2": TOKENIZERS,
        "unet": {"UNet2DConditionModel": UNet2DConditionModel},
        "scheduler": {scheduler.__name__: scheduler for scheduler in SCHEDULERS},
        "image_encoder": {},
        "feature_extractor": {},
    }
    _optional_components = ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    _guidance_scale = 5.0
    _denoising_end: float | None = None

    def _take(self, components: dict[str, Any], add_watermarker: bool | None, **options: bool) -> None:
        """What the constructors do."""
        self.register_modules(**components)
        self.register_to_config(**options)
        if add_watermarker:
            logger.warning("there is no invisible watermark: `add_watermarker` is passed over")

    @property
    def denoising_end(self) -> float | None:
        """After what part of the denoising the call under way ends."""
        return self._denoising_end

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """The embeddings of prompts and of negative prompts, token by token, and then both for each prompt as a whole.

        The first text encoder reads `prompt`, the second one `prompt_2`, or `prompt` where there is none. Without a negative
        prompt zeros stand for it, or an empty text where `force_zeros_for_empty_prompt` is off.
        """
        target = torch.device(device or self._execution_device)
        embeds, pooled = prompt_embeds, pooled_prompt_embeds
        negative, negative_pooled = negative_prompt_embeds, negative_pooled_prompt_embeds
        with scaled(1.0 if lora_scale is None else lora_scale):
            if embeds is None:
                texts = texts_of(prompt or [])
                embeds, pooled = self._embed(texts, texts_of(prompt_2 or texts), pooled, clip_skip)
            if pooled is None:
                raise ValueError("`prompt_embeds` go with `pooled_prompt_embeds`")
            batch = embeds.shape[0]
            if do_classifier_free_guidance and negative is None:
                if negative_prompt is None and self.config.force_zeros_for_empty_prompt:
                    negative, negative_pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
                else:
                    given = (negative_prompt or "", negative_prompt_2 or negative_prompt or "")
                    texts, second = ([one] * batch if isinstance(one, str) else list(one) for one in given)
                    for count in (len(texts), len(second)):
                        if count != batch:
                            raise ValueError(f"there are {count} negative prompts for {batch} prompts")
                    negative, negative_pooled = self._embed(texts, second, negative_pooled, None, embeds.shape[1])
        dtype = getattr(self.unet if self.text_encoder_2 is None else self.text_encoder_2, "dtype", embeds.dtype)
        embeds = repeat_embeds(embeds.to(target, dtype), num_images_per_prompt)
        pooled = pooled.repeat(1, num_images_per_prompt).view(batch * num_images_per_prompt, -1)
        if do_classifier_free_guidance and negative is not None and negative_pooled is not None:
            negative = repeat_embeds(negative.to(target, dtype), num_images_per_prompt)
            negative_pooled = negative_pooled.repeat(1, num_images_per_prompt).view(batch * num_images_per_prompt, -1)
        return embeds, negative, pooled, negative_pooled

    def _embed(
        self,
        texts: list[str],
        texts_2: list[str],
        pooled: torch.Tensor | None,
        clip_skip: int | None,
        max_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What both text encoders make of texts, side by side, or the second one alone; and what it makes of each whole."""
        if self.text_encoder_2 is None or self.tokenizer_2 is None:
            raise ValueError("there is no `text_encoder_2` and `tokenizer_2`: give embeddings in place of texts")
        tokenizers = [self.tokenizer_2] if self.tokenizer is None else [self.tokenizer, self.tokenizer_2]
        models = [self.text_encoder_2] if self.text_encoder is None else [self.text_encoder, self.text_encoder_2]
        layer, parts = -2 - (clip_skip or 0), []
        for prompts, tokenizer, model in zip((texts, texts_2), tokenizers, models):
            length = int(tokenizer.model_max_length) if max_length is None else max_length
            ids = input_ids(tokenizer, prompts, length, model, warn=max_length is None)
            output = model(ids, output_hidden_states=True)
            if pooled is None and output[0].ndim == 2:
                pooled = output[0]
            if len(output.hidden_states) < -layer:
                raise ValueError(f"`clip_skip` is {clip_skip}, but a text encoder has {len(output.hidden_states) - 1} layers")
            parts.append(output.hidden_states[layer])
        return torch.cat(parts, dim=-1), pooled

    def _check_both_prompts(
        self,
        prompt: Any,
        prompt_2: Any,
        callback_steps: int | None,
        negative_prompt: Any,
        negative_prompt_2: Any,
        embeds: tuple[torch.Tensor | None, torch.Tensor | None],
        pooled: tuple[torch.Tensor | None, torch.Tensor | None],
        callback_on_step_end_tensor_inputs: list[str] | None,
    ) -> None:
        """Refuses prompts and callbacks that do not go together; of `embeds` and `pooled` the second are the negative ones."""
        seen = callback_on_step_end_tensor_inputs
        self._check_prompts(prompt, callback_steps, negative_prompt, embeds[0], embeds[1], seen)
        if prompt_2 is not None and embeds[0] is not None:
            raise ValueError("give either `prompt_2` or `prompt_embeds`, not both")
        if negative_prompt_2 is not None and embeds[1] is not None:
            raise ValueError("give either `negative_prompt_2` or `negative_prompt_embeds`, not both")
        if prompt_2 and not isinstance(prompt_2, (str, list)):
            raise ValueError(f"`prompt_2` is a text or a list of texts, not a {type(prompt_2).__name__}")
        if prompt_2 and prompt is not None and len(texts_of(prompt_2)) != len(texts_of(prompt)):
            raise ValueError(f"there are {len(texts_of(prompt_2))} of `prompt_2` for {len(texts_of(prompt))} prompts")
        for name, one, whole in zip(("", "negative_"), embeds, pooled):
            if one is not None and whole is None:
                raise ValueError(f"`{name}prompt_embeds` go with `{name}pooled_prompt_embeds`")

    def _embeds_of_call(self, prompts: dict[str, Any], images: int) -> PromptEmbeds:
        """The embeddings, and their device and dtype, of a call's arguments."""
        scale = (self._cross_attention_kwargs or {}).get("scale")
        embeds = self.encode_prompt(
            **prompts,
            num_images_per_prompt=images,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            lora_scale=scale,
            clip_skip=self._clip_skip,
        )
        return PromptEmbeds(*embeds)

    def _tensors(self, embeds: PromptEmbeds, device: torch.device) -> dict[str, torch.Tensor]:
        """What the UNet is told of prompts, with guidance the negative ones first."""
        tokens, whole = embeds.prompt_embeds, embeds.pooled_prompt_embeds
        negative, negative_whole = embeds.negative_prompt_embeds, embeds.negative_pooled_prompt_embeds
        if self.do_classifier_free_guidance and negative is not None and negative_whole is not None:
            tokens, whole = torch.cat([negative, tokens]), torch.cat([negative_whole, whole])
        return {"prompt_embeds": tokens.to(device), "add_text_embeds": whole.to(device)}

    def _predict(
        self, sample: torch.Tensor, t: torch.Tensor, tensors: dict[str, Any], conditions: dict[str, Any]
    ) -> torch.Tensor:
        added = {"text_embeds": tensors["add_text_embeds"], "time_ids": tensors["add_time_ids"]}
        # A module of `torch.jit.trace` takes tensors, and no dictionary of them beside others.
        if isinstance(self.unet, torch.jit.ScriptModule):
            return first(self.unet(sample, t, tensors["prompt_embeds"], *added.values()))
        return super()._predict(sample, t, tensors, {**conditions, "added_cond_kwargs": added})

    def _check_added(self, numbers: int, pooled: torch.Tensor) -> None:
        """Holds the UNet to how many numbers it is told beside the pooled text."""
        names = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        each, expected = (getattr(self.unet_config, name, None) for name in names)
        if each is None or expected is None:
            raise ValueError(
                "a UNet of Stable Diffusion XL has `addition_time_embed_dim` and `projection_class_embeddings_input_dim`, but "
                "this one has not both"
            )
        # Differs from diffusers: there, it is not the pooled text itself that counts, but what its encoder says of it.
        given = each * numbers + pooled.shape[-1]
        if given == expected:
            return
        hints = {each: "enable", -each: "disable"}
        switch = hints.get(expected - given)
        score = str(switch == "enable")
        hint = f": {switch} `requires_aesthetics_score` with `pipe.register_to_config(requires_aesthetics_score={score})`"
        raise ValueError(
            f"the UNet's `projection_class_embeddings_input_dim` is {expected}, but {numbers} numbers and the pooled text make "
            f"{given}{hint if switch else ''}"
        )

    def _cutoff(self, part: float) -> int:
        """The timestep of the training before which `part` of the noise is gone."""
        train = self.scheduler.config.num_train_timesteps
        return int(round(train - part * train))

    def _lay_out(self, count: int, timesteps: list[int] | None, sigmas: list[float] | None) -> int:
        """Lays out the run, and says how many steps it has."""
        steps = retrieve_timesteps(self.scheduler, count, self._execution_device, timesteps, sigmas)
        return count if timesteps is None and sigmas is None else len(steps)

    def _until_end(self, steps: torch.Tensor, count: int) -> tuple[torch.Tensor, int, int]:
        """The timesteps up to `denoising_end`, how many steps they are, and for how many of them the bar stands still."""
        warmup = max(len(steps) - count * getattr(self.scheduler, "order", 1), 0)
        if is_part(self._denoising_end):
            count = int((steps >= self._cutoff(self._denoising_end)).sum())  # type: ignore[arg-type]
            steps = steps[:count]
        return steps, count, warmup

    @contextmanager
    def _vae_in_float32(self, wanted: bool) -> Iterator[None]:
        """Has the VAE compute in float32 where that is asked for, and casts it back whatever comes of it."""
        dtype = getattr(self.vae, "dtype", torch.float32)
        if not wanted or dtype == torch.float32:
            yield
            return
        self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            self.vae.to(dtype=dtype)

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The mean and the spread of each of the latents' channels, where the VAE knows them."""
        moments = [getattr(self.vae.config, name, None) for name in ("latents_mean", "latents_std")]
        if any(moment is None for moment in moments):
            return None
        mean, std = (torch.tensor(moment).view(1, -1, 1, 1).to(latents.device, latents.dtype) for moment in moments)
        return mean, std

    def _encode_vae_image(self, image: torch.Tensor, generator: Generators) -> torch.Tensor:
        upcasts, dtype = bool(getattr(self.vae.config, "force_upcast", False)), image.dtype
        with self._vae_in_float32(upcasts):
            latents = self._sampled_latents(image.float() if upcasts else image, generator).to(dtype)
        statistics, scale = self._statistics(latents), self.vae.config.scaling_factor
        if statistics is None:
            return scale * latents  # type: ignore[no-any-return]
        mean, std = statistics
        return (latents - mean) * scale / std  # type: ignore[no-any-return]

    def _finish(self, latents: torch.Tensor, output_type: str, return_dict: bool) -> Any:
        """The pictures of latents, as a call gives them."""
        images: Any = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self._decode(latents), output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        # The VAE of SDXL overflows in float16.
        upcasts = getattr(self.vae, "dtype", None) == torch.float16 and bool(self.vae.config.force_upcast)
        with self._vae_in_float32(upcasts):
            latents = latents.float() if upcasts else latents
            statistics, scale = self._statistics(latents), self.vae.config.scaling_factor
            if statistics is None:
                latents = latents / scale
            else:
                mean, std = statistics
                latents = latents * std / scale + mean
            return first(self.vae.decode(latents.to(getattr(self.vae, "execution_device", latents.device))))


def is_part(part: float | None) -> bool:
    """Whether a part of the denoising counts: it is a float above 0 and below 1, as in diffusers."""
    return isinstance(part, float) and 0 < part < 1
