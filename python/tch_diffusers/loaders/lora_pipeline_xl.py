"""Low-rank adapters (LoRA) of Stable Diffusion XL's UNet and text encoders (Hu et al. 2021, arXiv:2106.09685).

Mirrors `StableDiffusionXLLoraLoaderMixin` of `diffusers/loaders/lora_pipeline.py` at 0.42.1.
"""

from __future__ import annotations

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

__all__ = ["StableDiffusionXLLoraLoaderMixin"]


class StableDiffusionXLLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Adapters for a pipeline's UNet and both text encoders."""

    _lora_loadable_modules = ["unet", "text_encoder", "text_encoder_2"]
