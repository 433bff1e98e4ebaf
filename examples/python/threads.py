"""A pipeline for each of several threads, over one set of weights."""

import threading

import torch

from tch_diffusers import StableDiffusionPipeline
from tch_diffusers.utils import bundled_model

PROMPTS = ["a red circle", "a blue ring", "a yellow star", "a green square on a white background"]

pipe = StableDiffusionPipeline.from_pretrained(bundled_model())
pipe.set_progress_bar_config(disable=True)


def draw(own, number):
    generator = torch.Generator().manual_seed(number)
    own(PROMPTS[number], num_inference_steps=8, generator=generator).images[0].save(f"thread-{number}.png")


# Sharing copies no weight, and the interpreter's lock is let go while a model runs.
threads = [threading.Thread(target=draw, args=(pipe.share(), number)) for number in range(len(PROMPTS))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
