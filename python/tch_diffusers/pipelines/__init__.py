"""Whole ways from a prompt to a picture, named as in diffusers."""

from tch_diffusers.pipelines.auto_pipeline import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
)
from tch_diffusers.pipelines.flux import FluxPipeline, FluxPipelineOutput
from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tch_diffusers.pipelines.safety_checker import StableDiffusionSafetyChecker
from tch_diffusers.pipelines.stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput
from tch_diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from tch_diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from tch_diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline, StableDiffusionXLPipelineOutput
from tch_diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline

__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "DiffusionPipeline",
    "FluxPipeline",
    "FluxPipelineOutput",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "StableDiffusionSafetyChecker",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLPipelineOutput",
]
