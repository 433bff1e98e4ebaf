"""Low-rank adapters (LoRA) of Stable Diffusion XL's UNet and text encoders (Hu et al. 2021, arXiv:2106.09685).

Mirrors `StableDiffusionXLLoraLoaderMixin` of `diffusers/loaders/lora_pipeline.py` at 0.42.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

__all__ = ["StableDiffusionXLLoraLoaderMixin"]

# What becomes of the authors' `input_blocks_4_1` and `output_blocks_0_1`, where diffusers' blocks have names in them.
_AUTHORS_BLOCKS = re.compile(r"such as `(down|up)_blocks\.\d+\.\d")


class StableDiffusionXLLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Adapters for a pipeline's UNet and both text encoders."""

    _lora_loadable_modules = ["unet", "text_encoder", "text_encoder_2"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """As `StableDiffusionLoraLoaderMixin.load_lora_weights`; of kohya's layouts, that with diffusers' names of blocks."""
        try:
            super().load_lora_weights(pretrained_model_name_or_path_or_dict, adapter_name, hotswap, **kwargs)
        except ValueError as error:
            if _AUTHORS_BLOCKS.search(str(error)) is None:
                raise
            raise NotImplementedError(
                "a LoRA whose blocks are named as the authors' (`lora_unet_input_blocks_4_1_...`) is not supported: load it in "
                "diffusers, and save it with `save_lora_weights`"
            ) from error
