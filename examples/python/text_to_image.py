"""A picture of a prompt: diffusers' own script, but for the import and the model's path."""

import torch

from tch_diffusers import StableDiffusionPipeline
from tch_diffusers.utils import bundled_model

pipe = StableDiffusionPipeline.from_pretrained(bundled_model(), torch_dtype=torch.float32, use_safetensors=True)
generator = torch.Generator().manual_seed(7)
image = pipe("a yellow star on a black background", num_inference_steps=25, generator=generator).images[0]
image.save("star.png")
print("star.png", image.size)
