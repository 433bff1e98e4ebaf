"""The UNet of Stable Diffusion.

Mirrors `diffusers/models/unets/unet_2d_condition.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.loaders.peft import PeftAdapterMixin
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import BaseOutput
from tch_diffusers.utils.lora import lora_scale_of, scaled

__all__ = ["UNet2DConditionModel", "UNet2DConditionOutput"]


@dataclass(eq=False)
class UNet2DConditionOutput(BaseOutput):
    """What the UNet predicts, shaped like the sample."""

    sample: torch.Tensor


class UNet2DConditionModel(ModelMixin, PeftAdapterMixin):
    """Predicts noise from noisy latents, a timestep and text.

    >>> import torch
    >>> from tch_diffusers.utils import bundled_model
    >>> unet = UNet2DConditionModel.from_pretrained(bundled_model(), subfolder="unet")
    >>> sample, text = torch.zeros(1, 4, 16, 16), torch.zeros(1, 24, unet.config.cross_attention_dim)
    >>> unet(sample, 981, encoder_hidden_states=text).sample.shape
    torch.Size([1, 4, 16, 16])
    """

    _core_class = _tch_diffusers.UNet2DConditionModel
    _core: _tch_diffusers.UNet2DConditionModel
    _skip_layerwise_casting_patterns = ["norm"]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """The prediction for `sample` at `timestep`, `[batch, out_channels, height, width]`."""
        scale = lora_scale_of(cross_attention_kwargs)
        if down_intrablock_additional_residuals is not None:
            raise NotImplementedError("T2I-Adapters (`down_intrablock_additional_residuals`) are not supported")
        added = added_cond_kwargs or {}
        conditions: dict[str, Any] = {
            "class_labels": class_labels,
            "timestep_cond": timestep_cond,
            "attention_mask": attention_mask,
            "encoder_attention_mask": encoder_attention_mask,
            "text_embeds": added.get("text_embeds"),
            "time_ids": added.get("time_ids"),
            "down_block_additional_residuals": list(down_block_additional_residuals or []) or None,
            "mid_block_additional_residual": mid_block_additional_residual,
        }
        told = conditions if any(value is not None for value in conditions.values()) else None
        time = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(timestep)
        with scaled(scale):
            predicted = self._core.forward(sample, time, encoder_hidden_states, told)
        return UNet2DConditionOutput(predicted) if return_dict else (predicted,)
