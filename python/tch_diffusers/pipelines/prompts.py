"""Prompts as pipelines take them: cut to what a text encoder reads, and repeated for the pictures of each.

Mirrors what `encode_prompt` of diffusers' pipelines have in common, at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers.models.clip_tokenizer import Tokenizer
from tch_diffusers.utils import logger

__all__ = ["input_ids", "repeat_embeds", "texts_of", "tokenize"]


def texts_of(prompt: str | list[str]) -> list[str]:
    """A list of a text, or the list that it is."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def tokenize(
    tokenizer: Any, texts: list[str], max_length: int, warn: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the texts' tokens, and which of them are text; `warn` says what was cut."""
    if isinstance(tokenizer, Tokenizer):
        ids, mask, removed = tokenizer.tokenize_for_prompt(texts, max_length)
        if removed and warn:
            logger.warning("at most %d tokens are read, so this part of the prompt was cut: %s", max_length, removed)
        return ids, mask
    cut: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    inputs = tokenizer(texts, max_length=max_length, **cut)
    return inputs.input_ids, inputs.attention_mask


def input_ids(tokenizer: Any, texts: list[str], max_length: int, model: Any, warn: bool = False) -> torch.Tensor:
    """The numbers of the texts' tokens, where the model reads them."""
    ids, _ = tokenize(tokenizer, texts, max_length, warn)
    place: Any = getattr(model, "execution_device", None) or getattr(model, "device", "cpu")
    return ids.to(place)


def repeat_embeds(embeds: torch.Tensor, images: int) -> torch.Tensor:
    """The embeddings of each prompt `images` times, one after the other."""
    batch, tokens, _ = embeds.shape
    return embeds.repeat(1, images, 1).view(batch * images, tokens, -1)
