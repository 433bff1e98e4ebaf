"""What the tests share: the bundled model, and pipelines of both libraries on it. Nothing touches the network."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import tch_diffusers
from tch_diffusers.utils import bundled_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

diffusers.utils.logging.disable_progress_bar()
sys.path.insert(0, str(Path(__file__).parent / "upstream"))

PROMPT = "a yellow star on a black background"


@pytest.fixture(scope="session")
def model() -> Path:
    """The folder of the bundled model."""
    return bundled_model()


@pytest.fixture
def pipe(model: Path) -> tch_diffusers.StableDiffusionPipeline:
    """A pipeline of this library."""
    pipe = tch_diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def reference(model: Path) -> Any:
    """A pipeline of diffusers, to be left as it is."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def theirs(reference: Any) -> Any:
    """A pipeline of diffusers whose parts may be replaced."""
    components = {**reference.components, "scheduler": type(reference.scheduler).from_config(reference.scheduler.config)}
    pipe = diffusers.StableDiffusionPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: Any = PROMPT, seed: int = 7, **arguments: Any) -> Any:
    """Pictures as an array, of few steps."""
    options = {"num_inference_steps": 3, "output_type": "np", **arguments}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images
