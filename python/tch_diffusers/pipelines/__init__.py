"""Whole ways from a prompt to a picture, named as in diffusers."""

from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tch_diffusers.pipelines.stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput

__all__ = ["DiffusionPipeline", "StableDiffusionPipeline", "StableDiffusionPipelineOutput"]
