"""Hugging Face diffusers' API on Rust and libtorch: change the import, and a script runs.

>>> import torch
>>> from tch_diffusers import StableDiffusionPipeline
>>> from tch_diffusers.utils import bundled_model
>>> pipe = StableDiffusionPipeline.from_pretrained(bundled_model(), dtype=torch.float32)
>>> pipe.set_progress_bar_config(disable=True)
>>> image = pipe("a red circle on a blue background", num_inference_steps=2).images[0]

The same seed gives the same picture as diffusers 0.42.1, bit for bit on the CPU in float32.
"""

from __future__ import annotations

_TORCH = "2.11"

try:
    import torch
except ImportError as error:
    raise ImportError(f"tch_diffusers runs on torch {_TORCH}, which is not installed: pip install torch=={_TORCH}.*") from error

if not torch.__version__.startswith(_TORCH + "."):
    raise ImportError(
        f"tch_diffusers was built for torch {_TORCH}, and torch {torch.__version__} is installed: "
        f"pip install torch=={_TORCH}.*"
    )

# torch has opened its libraries, which the extension finds by name: it carries none, and no path to any.
from tch_diffusers import _tch_diffusers  # noqa: E402
from tch_diffusers.hooks import apply_group_offloading, apply_layerwise_casting  # noqa: E402
from tch_diffusers.models import (  # noqa: E402
    AutoencoderKL,
    AutoModel,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    FluxTransformer2DModel,
    ModelMixin,
    T5EncoderModel,
    T5Tokenizer,
    UNet2DConditionModel,
)
from tch_diffusers.pipelines import (  # noqa: E402
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionSafetyChecker,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from tch_diffusers.schedulers import (  # noqa: E402
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

__version__ = "0.1.0"
__libtorch_version__ = _tch_diffusers.libtorch_version()

__all__ = [
    "AutoModel",
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "AutoencoderKL",
    "CLIPImageProcessor",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DiffusionPipeline",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FluxPipeline",
    "FluxTransformer2DModel",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "ModelMixin",
    "PNDMScheduler",
    "SchedulerMixin",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSafetyChecker",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLPipeline",
    "T5EncoderModel",
    "T5Tokenizer",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "apply_group_offloading",
    "apply_layerwise_casting",
]
