"""What a picture shows, held against what it should not.

Mirrors `diffusers/pipelines/stable_diffusion/safety_checker.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import logger

__all__ = ["StableDiffusionSafetyChecker"]


class StableDiffusionSafetyChecker(ModelMixin):
    """Looks at pictures by CLIP, and blackens those that show what they should not."""

    _core_class = _tch_diffusers.StableDiffusionSafetyChecker
    _core: _tch_diffusers.StableDiffusionSafetyChecker

    @torch.no_grad()
    def forward(self, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        """The pictures, of which some are zero now, in place; and which of them.

        `images` are a tensor, an array, or a list of either; `clip_input` is what the feature extractor makes of them.
        """
        flags = self._core.check(clip_input)
        for index, flag in enumerate(flags):
            if flag:
                one = images[index]
                images[index] = torch.zeros_like(one) if isinstance(one, torch.Tensor) else np.zeros_like(one)
        if any(flags):
            logger.warning(
                "one or more pictures may show what is not safe for work, and are black in their place: try another prompt "
                "or another seed"
            )
        return images, flags
