"""The command line tool and diffusers, side by side on the bundled model: the same seed gives the same pixels."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/tch-diffusers"
SHAPES = ROOT / "assets/shapes"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    "dpm_single": "DPMSolverSinglestepScheduler",
    "deis": "DEISMultistepScheduler",
    "lcm": "LCMScheduler",
}


def ours(folder: Path, *options: str) -> list[np.ndarray]:
    """The pictures that the command line tool draws."""
    command = [BINARY, "generate", "--quiet", "--output", folder / "picture.png", *options]
    printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return [np.asarray(Image.open(line)) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def pipe():
    """The bundled model in diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.default = pipe.scheduler
    return pipe


def theirs(pipe, prompt, seed: int, scheduler: str | None = None, **arguments) -> list[np.ndarray]:
    """The pictures that diffusers draws."""
    import diffusers
    import torch

    pipe.scheduler = pipe.default
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(pipe.default.config)
    generator = torch.Generator("cpu").manual_seed(seed)
    return [np.asarray(image) for image in pipe(prompt, generator=generator, **arguments).images]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        np.testing.assert_array_equal(ours, theirs)


def test_the_star_of_the_readme(pipe, tmp_path):
    prompt = "a yellow star on a black background"
    found = ours(tmp_path, "--prompt", prompt, "--seed", "7")
    assert_same(found, theirs(pipe, prompt, 7, num_inference_steps=25))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(pipe, tmp_path, scheduler):
    prompt = "a red circle on a blue background"
    found = ours(tmp_path, "--prompt", prompt, "--seed", "3", "--scheduler", scheduler, "--steps", "12")
    assert_same(found, theirs(pipe, prompt, 3, scheduler, num_inference_steps=12))


def test_a_batch_of_prompts_with_negative_prompts(pipe, tmp_path):
    prompts = ["a green square on a white background", "an orange heart on a purple background"]
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    found = ours(tmp_path, *options, "--negative-prompt", "a blue cross", "--seed", "5", "--steps", "8")
    expected = theirs(pipe, prompts, 5, num_inference_steps=8, negative_prompt=["a blue cross"] * 2)
    assert_same(found, expected)


def test_another_size_and_guidance(pipe, tmp_path):
    prompt = "a black star on an orange background"
    options = ["--width", "192", "--height", "136", "--guidance-scale", "3.5", "--guidance-rescale", "0.5"]
    found = ours(tmp_path, "--prompt", prompt, "--seed", "11", "--steps", "6", *options)
    size = dict(width=192, height=136)
    expected = theirs(pipe, prompt, 11, num_inference_steps=6, guidance_scale=3.5, guidance_rescale=0.5, **size)
    assert_same(found, expected)


def test_the_plain_script_without_a_dtype_runs(pipe):
    """Without a dtype, diffusers loads the folder too, so that the plain script works."""
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(SHAPES)
    plain.set_progress_bar_config(disable=True)
    assert_same(theirs_with(plain), theirs_with(pipe))


def theirs_with(pipe) -> list[np.ndarray]:
    import torch

    generator = torch.Generator("cpu").manual_seed(1)
    images = pipe("a white circle on a red background", num_inference_steps=2, generator=generator).images
    return [np.asarray(image) for image in images]
