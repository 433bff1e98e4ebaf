"""Low-rank adapters (LoRA)."""

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from tch_diffusers.loaders.lora_pipeline_xl import StableDiffusionXLLoraLoaderMixin

__all__ = ["StableDiffusionLoraLoaderMixin", "StableDiffusionXLLoraLoaderMixin"]
