"""Low-rank adapters (LoRA)."""

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

__all__ = ["StableDiffusionLoraLoaderMixin"]
