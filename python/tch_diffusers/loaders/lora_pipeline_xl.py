"""Low-rank adapters (LoRA) of Stable Diffusion XL's UNet and text encoders (Hu et al. 2021, arXiv:2106.09685).

Mirrors `StableDiffusionXLLoraLoaderMixin` of `diffusers/loaders/lora_pipeline.py` at 0.42.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, save_layers

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

    @classmethod
    def save_lora_weights(  # type: ignore[override]
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        text_encoder_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        text_encoder_2_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """As `StableDiffusionLoraLoaderMixin.save_lora_weights`, with the second text encoder's layers."""
        layers = {
            "unet": unet_lora_layers,
            "text_encoder": text_encoder_lora_layers,
            "text_encoder_2": text_encoder_2_lora_layers,
        }
        configs = {
            "unet": unet_lora_adapter_metadata,
            "text_encoder": text_encoder_lora_adapter_metadata,
            "text_encoder_2": text_encoder_2_lora_adapter_metadata,
        }
        save_layers(save_directory, layers, configs, weight_name, save_function, safe_serialization)
