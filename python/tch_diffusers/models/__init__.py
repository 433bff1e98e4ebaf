"""The networks, named as in diffusers and transformers."""

from tch_diffusers.models.auto_model import AutoModel
from tch_diffusers.models.autoencoder_kl import AutoencoderKL, AutoencoderKLOutput, DecoderOutput
from tch_diffusers.models.clip import (
    CLIPTextModel,
    CLIPTextModelOutput,
    CLIPTextModelWithProjection,
    CLIPTextModelWithProjectionOutput,
)
from tch_diffusers.models.clip_image_processor import CLIPImageProcessor
from tch_diffusers.models.clip_tokenizer import CLIPTokenizer
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.models.t5 import T5EncoderModel, T5EncoderModelOutput
from tch_diffusers.models.t5_tokenizer import T5Tokenizer
from tch_diffusers.models.transformer_flux import FluxTransformer2DModel, Transformer2DModelOutput
from tch_diffusers.models.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput

__all__ = [
    "AutoModel",
    "AutoencoderKL",
    "AutoencoderKLOutput",
    "CLIPImageProcessor",
    "CLIPTextModel",
    "CLIPTextModelOutput",
    "CLIPTextModelWithProjection",
    "CLIPTextModelWithProjectionOutput",
    "CLIPTokenizer",
    "DecoderOutput",
    "FluxTransformer2DModel",
    "ModelMixin",
    "T5EncoderModel",
    "T5EncoderModelOutput",
    "T5Tokenizer",
    "Transformer2DModelOutput",
    "UNet2DConditionModel",
    "UNet2DConditionOutput",
]
