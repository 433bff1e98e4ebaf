"""Pipelines found by what their folder says.

Mirrors `diffusers/pipelines/auto_pipeline.py` at 0.42.1.
"""

from __future__ import annotations

import os
from typing import Any

from tch_diffusers.pipelines.flux import FluxPipeline
from tch_diffusers.pipelines.pipeline_utils import DiffusionPipeline, read_index
from tch_diffusers.pipelines.stable_diffusion import StableDiffusionPipeline
from tch_diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from tch_diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from tch_diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from tch_diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from tch_diffusers.utils.hub import HUB_ARGUMENTS, local_folder

__all__ = ["AutoPipelineForImage2Image", "AutoPipelineForInpainting", "AutoPipelineForText2Image"]

AUTO_TEXT2IMAGE_PIPELINES_MAPPING: dict[str, type[DiffusionPipeline]] = {
    "stable-diffusion": StableDiffusionPipeline,
    "stable-diffusion-xl": StableDiffusionXLPipeline,
    "flux": FluxPipeline,
}
AUTO_IMAGE2IMAGE_PIPELINES_MAPPING: dict[str, type[DiffusionPipeline]] = {
    "stable-diffusion": StableDiffusionImg2ImgPipeline,
    "stable-diffusion-xl": StableDiffusionXLImg2ImgPipeline,
}
AUTO_INPAINT_PIPELINES_MAPPING: dict[str, type[DiffusionPipeline]] = {
    "stable-diffusion": StableDiffusionInpaintPipeline,
}
_MAPPINGS = (
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
)


class _AutoPipeline:
    """Finds the pipeline of a task that has the components of a folder's, or of another pipeline's."""

    _mapping: dict[str, type[DiffusionPipeline]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        raise OSError(f"a {name} is made by `{name}.from_pretrained(folder)` or `{name}.from_pipe(pipeline)`")

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Reads the pipeline for this task from a folder, or from a repository of the Hub, whichever it names.

        Arguments are those of `DiffusionPipeline.from_pretrained`.
        """
        _refuse(kwargs)
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        index = read_index(local_folder(pretrained_model_or_path, **hub))
        found = cls._class_for(index.get("_class_name"))
        return found.from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """The pipeline for this task with the components of another one: see `DiffusionPipeline.from_pipe`."""
        _refuse(kwargs)
        return cls._class_for(type(pipeline).__name__).from_pipe(pipeline, **kwargs)

    @classmethod
    def _class_for(cls, name: Any) -> type[DiffusionPipeline]:
        for mapping in _MAPPINGS:
            for model, pipeline in mapping.items():
                if pipeline.__name__ == name and model in cls._mapping:
                    return cls._mapping[model]
        there_are = ", ".join(pipeline.__name__ for pipeline in cls._mapping.values())
        raise NotImplementedError(f"the model's pipeline is a {name}, for which there is none of {there_are}")


def _refuse(kwargs: dict[str, Any]) -> None:
    """Refuses what would lead to a pipeline that is not there."""
    for name, kind in (("controlnet", "ControlNets"), ("enable_pag", "perturbed-attention guidance")):
        if kwargs.pop(name, None):
            raise NotImplementedError(f"`{name}`: {kind} are not supported")


class AutoPipelineForText2Image(_AutoPipeline):
    """Pipelines from text to picture.

    >>> from tch_diffusers.utils import bundled_model
    >>> type(AutoPipelineForText2Image.from_pretrained(bundled_model())).__name__
    'StableDiffusionPipeline'
    """

    _mapping = AUTO_TEXT2IMAGE_PIPELINES_MAPPING


class AutoPipelineForImage2Image(_AutoPipeline):
    """Pipelines from picture to picture.

    >>> from tch_diffusers.utils import bundled_model
    >>> pipe = AutoPipelineForText2Image.from_pretrained(bundled_model())
    >>> type(AutoPipelineForImage2Image.from_pipe(pipe)).__name__
    'StableDiffusionImg2ImgPipeline'
    """

    _mapping = AUTO_IMAGE2IMAGE_PIPELINES_MAPPING


class AutoPipelineForInpainting(_AutoPipeline):
    """Pipelines that draw a part of a picture anew.

    >>> from tch_diffusers.utils import bundled_model
    >>> type(AutoPipelineForInpainting.from_pretrained(bundled_model())).__name__
    'StableDiffusionInpaintPipeline'
    """

    _mapping = AUTO_INPAINT_PIPELINES_MAPPING
