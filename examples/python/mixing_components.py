"""Components of diffusers and of tch_diffusers, in each other's pipelines."""

import diffusers
import torch

import tch_diffusers
from tch_diffusers.utils import bundled_model

theirs = diffusers.StableDiffusionPipeline.from_pretrained(bundled_model(), dtype=torch.float32)
ours = tch_diffusers.StableDiffusionPipeline.from_pretrained(bundled_model())


def draw(pipe):
    generator = torch.Generator().manual_seed(5)
    return pipe("a blue square on a white background", num_inference_steps=6, generator=generator).images[0].tobytes()


expected = draw(theirs)

# Our UNet, with the very weights that diffusers' UNet holds, in diffusers' pipeline.
theirs.unet = tch_diffusers.UNet2DConditionModel.from_module(theirs.unet)
assert draw(theirs) == expected

# diffusers' scheduler in ours, one that tch_diffusers lacks.
ours.scheduler = diffusers.HeunDiscreteScheduler.from_config(dict(ours.scheduler.config))
theirs.scheduler = diffusers.HeunDiscreteScheduler.from_config(theirs.scheduler.config)
assert draw(ours) == draw(theirs)
print("the same pictures")
