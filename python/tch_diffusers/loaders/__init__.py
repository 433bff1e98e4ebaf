"""Low-rank adapters (LoRA)."""

from tch_diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from tch_diffusers.loaders.lora_pipeline_xl import StableDiffusionXLLoraLoaderMixin
from tch_diffusers.loaders.peft import PeftAdapterMixin

__all__ = ["PeftAdapterMixin", "StableDiffusionLoraLoaderMixin", "StableDiffusionXLLoraLoaderMixin"]
