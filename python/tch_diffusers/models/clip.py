"""CLIP's text models.

Mirrors `CLIPTextModel` and `CLIPTextModelWithProjection` of `transformers/models/clip/modeling_clip.py` at 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.loaders.peft import PeftAdapterMixin
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import BaseOutput

__all__ = ["CLIPTextModel", "CLIPTextModelOutput", "CLIPTextModelWithProjection", "CLIPTextModelWithProjectionOutput"]


@dataclass(eq=False)
class CLIPTextModelOutput(BaseOutput):
    """What the text model gives."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor
    hidden_states: Optional[tuple[torch.Tensor, ...]] = None


class CLIPTextModel(ModelMixin, PeftAdapterMixin):
    """The text half of CLIP.

    >>> import torch
    >>> from tch_diffusers.utils import bundled_model
    >>> text_encoder = CLIPTextModel.from_pretrained(bundled_model(), subfolder="text_encoder")
    >>> text_encoder(torch.zeros(1, 24, dtype=torch.int64)).last_hidden_state.shape[:2]
    torch.Size([1, 24])
    """

    _core_class = _tch_diffusers.CLIPTextModel
    _core: _tch_diffusers.CLIPTextModel

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> CLIPTextModelOutput | tuple[object, ...]:
        """The last hidden state, the one at the end of the text and, if asked for, those of all layers."""
        last, pooled, states = self._core.forward(input_ids, attention_mask, output_hidden_states)
        output = CLIPTextModelOutput(last, pooled, tuple(states) if states is not None else None)
        return output if return_dict else output.to_tuple()

    def embed(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, clip_skip: int | None = None
    ) -> torch.Tensor:
        """The embeddings of a prompt, as pipelines take them; `clip_skip` of 1 takes the layer before the last."""
        if clip_skip is None:
            return self._core.forward(input_ids, attention_mask)[0]
        return self._core.clip_skip(input_ids, attention_mask, clip_skip)


@dataclass(eq=False)
class CLIPTextModelWithProjectionOutput(BaseOutput):
    """What the text model with a projection gives."""

    text_embeds: torch.Tensor
    last_hidden_state: torch.Tensor
    hidden_states: Optional[tuple[torch.Tensor, ...]] = None


class CLIPTextModelWithProjection(ModelMixin, PeftAdapterMixin):
    """The text half of CLIP and a linear map of the pooled state: Stable Diffusion XL's second text encoder.

    >>> import torch
    >>> size = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, projection_dim=4)
    >>> text_encoder_2 = CLIPTextModelWithProjection.from_config(dict(vocab_size=9, eos_token_id=8, **size))
    >>> text_encoder_2(torch.tensor([[7, 1, 8, 8]])).text_embeds.shape
    torch.Size([1, 4])
    """

    _core_class = _tch_diffusers.CLIPTextModelWithProjection
    _core: _tch_diffusers.CLIPTextModelWithProjection

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> CLIPTextModelWithProjectionOutput | tuple[object, ...]:
        """The projected state at the end of the text, the last hidden state and, if asked for, those of all layers."""
        embeds, last, states = self._core.forward(input_ids, attention_mask, output_hidden_states)
        output = CLIPTextModelWithProjectionOutput(embeds, last, tuple(states) if states is not None else None)
        return output if return_dict else output.to_tuple()
