"""The transformer of FLUX.1.

Mirrors `diffusers/models/transformers/transformer_flux.py` at 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.loaders.peft import PeftAdapterMixin
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import BaseOutput

__all__ = ["FluxTransformer2DModel", "Transformer2DModelOutput"]


@dataclass(eq=False)
class Transformer2DModelOutput(BaseOutput):
    """What the transformer predicts, `[batch, tokens, channels]`."""

    sample: torch.Tensor


class FluxTransformer2DModel(ModelMixin, PeftAdapterMixin):
    """Predicts the velocity of a picture's tokens from noisy ones, a time and text.

    >>> config = dict(
    ...     in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
    ...     joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
    ... )
    >>> transformer = FluxTransformer2DModel.from_config(config)
    >>> transformer(
    ...     hidden_states=torch.zeros(1, 9, 4), encoder_hidden_states=torch.zeros(1, 3, 6), timestep=torch.ones(1),
    ...     pooled_projections=torch.zeros(1, 5), img_ids=torch.zeros(9, 3), txt_ids=torch.zeros(3, 3),
    ... ).sample.shape
    torch.Size([1, 9, 4])
    """

    _core_class = _tch_diffusers.FluxTransformer2DModel
    _core: _tch_diffusers.FluxTransformer2DModel
    _skip_layerwise_casting_patterns = ["pos_embed", "norm"]

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        pooled_projections: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        img_ids: torch.Tensor | None = None,
        txt_ids: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """The velocity, `[batch, tokens, out_channels]`. `timestep` is a part of 1."""
        if joint_attention_kwargs:
            raise NotImplementedError(f"`joint_attention_kwargs` {sorted(joint_attention_kwargs)} are not supported")
        needed = {
            "encoder_hidden_states": encoder_hidden_states,
            "pooled_projections": pooled_projections,
            "timestep": timestep,
            "img_ids": img_ids,
            "txt_ids": txt_ids,
        }
        missing = [name for name, tensor in needed.items() if tensor is None]
        if missing:
            raise TypeError(f"FluxTransformer2DModel needs {', '.join(missing)}")
        predicted = self._core.forward({"hidden_states": hidden_states, **needed, "guidance": guidance})
        return Transformer2DModelOutput(predicted) if return_dict else (predicted,)
