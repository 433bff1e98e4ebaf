"""Checkpoints in one file: the pipeline that diffusers makes of them, weight by weight and picture by picture."""

import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import draw

from tch_diffusers import (
    CLIPTokenizer,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

# What tests/fixtures/make.py has diffusers write.
FILES = Path(__file__).resolve().parents[2] / "tests/fixtures/generated/single_file"


@pytest.mark.parametrize("name", ["small", "second", "second_inpainting"])
def test_the_same_weights_and_pictures_as_diffusers(name):
    path, config = FILES / name / "model.safetensors", FILES / name / "config"
    ours = StableDiffusionPipeline.from_single_file(path, config=config, requires_safety_checker=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), local_files_only=True, safety_checker=None
        )
    for part in ("unet", "vae", "text_encoder"):
        own, expected = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert len(own) == len(expected)
        assert all(torch.equal(weight, own[key.removeprefix("text_model.")]) for key, weight in expected.items())
    if "inpainting" not in name:
        for pipe in (ours, theirs):
            pipe.set_progress_bar_config(disable=True)
        given = {"prompt_embeds": torch.ones(1, 77, 16), "negative_prompt_embeds": torch.zeros(1, 77, 16)}
        np.testing.assert_array_equal(draw(ours, None, **given), draw(theirs, None, **given))
    half = StableDiffusionInpaintPipeline.from_single_file(path, config=config, dtype=torch.bfloat16, image_size=128)
    assert half.dtype == torch.bfloat16 and half.unet.config.sample_size == 16


def test_what_cannot_be_read_is_named(tmp_path, model):
    (tmp_path / "model.ckpt").write_text("x")
    with pytest.raises(NotImplementedError, match="save_file"):
        StableDiffusionPipeline.from_single_file(tmp_path / "model.ckpt")
    with pytest.raises(NotImplementedError, match="save_file"):
        StableDiffusionPipeline.from_single_file(tmp_path / "model.ckpt", config=model)
    with pytest.raises(NotImplementedError, match="no checkpoint of Stable Diffusion"):
        StableDiffusionPipeline.from_single_file(model / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(OSError, match="gone.safetensors"):
        StableDiffusionPipeline.from_single_file(tmp_path / "gone.safetensors")
    with pytest.raises(TypeError, match="takes no color"):
        StableDiffusionPipeline.from_single_file(tmp_path / "model.ckpt", color=1)


def test_the_tokenizer_is_the_one_that_is_passed(model):
    path, config = FILES / "small/model.safetensors", FILES / "small/config"
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    pipe = StableDiffusionPipeline.from_single_file(path, config=config, tokenizer=tokenizer, prediction_type="v_prediction")
    assert pipe.tokenizer is tokenizer and pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.safety_checker is None
