"""A UNet traced by Python's own tracer, in the UNet's place."""

import functools
import tempfile
import warnings
from pathlib import Path

import torch

from tch_diffusers import StableDiffusionPipeline
from tch_diffusers.utils import bundled_model

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
pipe = StableDiffusionPipeline.from_pretrained(bundled_model())


def draw():
    generator = torch.Generator().manual_seed(3)
    return pipe("a green circle on a black background", num_inference_steps=8, generator=generator).images[0]


expected = draw()
unet = pipe.unet
unet.forward = functools.partial(unet.forward, return_dict=False)
text = torch.randn(2, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim)
with torch.no_grad():
    traced = torch.jit.trace(unet, (torch.randn(2, 4, 16, 16), torch.rand(1) * 999, text))

path = Path(tempfile.mkdtemp()) / "unet_traced.pt"
traced.save(path)
pipe.unet = path
assert draw().tobytes() == expected.tobytes()
print("the traced UNet draws the same picture")
