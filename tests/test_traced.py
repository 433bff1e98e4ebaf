"""TorchScript files between the command line tool and diffusers: traced on either side, the other draws the same pixels."""

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("TCH_DIFFUSERS_BINARY", ROOT / "target/release/tch-diffusers"))
SHAPES = ROOT / "assets/shapes"
PROMPT = "a yellow star on a black background"
STEPS = 6
sys.path.insert(0, str(ROOT / "examples"))


def run(*command) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Path:
    """The bundled UNet, traced by the command line tool."""
    path = tmp_path_factory.mktemp("traced") / "unet_traced.pt"
    run(BINARY, "trace", "--component", "unet", "--output", path)
    return path


def load(dtype="float32"):
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(SHAPES, torch_dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments) -> np.ndarray:
    import torch

    with torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(7)
        return np.asarray(pipe(PROMPT, num_inference_steps=STEPS, generator=generator, **arguments).images[0])


@pytest.mark.parametrize("size", [{}, {"height": 96, "width": 160}])
def test_a_unet_traced_here_draws_the_same_pixels_in_diffusers(traced, size):
    from traced_unet import TracedUNet

    pipe = load()
    expected = draw(pipe, **size)
    pipe.unet = TracedUNet(str(traced), pipe.unet)
    np.testing.assert_array_equal(draw(pipe, **size), expected)


def test_a_file_of_this_side_has_named_weights_and_is_cast_in_python(traced):
    import torch

    module, unet = torch.jit.load(str(traced)), load().unet
    theirs = unet.state_dict()
    assert module.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in module.state_dict().items())
    assert {name for name, _ in module.named_parameters()} == theirs.keys()
    unet.load_state_dict(module.state_dict())

    half = load("bfloat16").unet
    module.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((3, 4, 16, 24), generator=generator).bfloat16()
    text = torch.randn((3, 77, unet.config.cross_attention_dim), generator=generator).bfloat16()
    with torch.inference_mode():
        for timestep in (torch.tensor(601), torch.tensor([601.0])):
            expected = half(sample, timestep, text).sample
            assert torch.equal(module(sample, timestep, text)[0], expected)
            named = module(sample=sample, timestep=timestep, encoder_hidden_states=text)[0]
            assert torch.equal(named, expected)


def test_text_encoder_and_decoder_traced_here_give_the_same_numbers_in_python(tmp_path):
    import torch

    pipe = load()
    for component in ("text_encoder", "vae_decoder"):
        run(BINARY, "trace", "--component", component, "--output", tmp_path / f"{component}.pt")
    ids = pipe.tokenizer(["a red circle", "a star"], padding="max_length", return_tensors="pt").input_ids
    latents = torch.randn((2, 4, 12, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        text = torch.jit.load(str(tmp_path / "text_encoder.pt"))(ids)
        expected = pipe.text_encoder(ids)
        assert torch.equal(text[0], expected.last_hidden_state) and torch.equal(text[1], expected.pooler_output)
        picture = torch.jit.load(str(tmp_path / "vae_decoder.pt"))(latents)[0]
        assert torch.equal(picture, pipe.vae.decode(latents).sample)


def test_a_frozen_file_draws_the_same_picture_in_diffusers_but_for_rounding(tmp_path):
    from traced_unet import TracedUNet

    run(BINARY, "trace", "--freeze", "--output", tmp_path / "frozen.pt")
    pipe = load()
    expected = draw(pipe).astype(int)
    pipe.unet = TracedUNet(str(tmp_path / "frozen.pt"), pipe.unet)
    assert np.abs(draw(pipe).astype(int) - expected).max() <= 1


def test_a_unet_traced_in_python_draws_the_same_pixels_here(tmp_path):
    import torch

    pipe = load()
    expected = draw(pipe)
    unet = pipe.unet.eval()
    unet.forward = functools.partial(unet.forward, return_dict=False)
    text = torch.randn(2, 77, unet.config.cross_attention_dim)
    inputs = (torch.randn(2, 4, 16, 16), torch.rand(1) * 999, text)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(unet, inputs).save(str(tmp_path / "unet_traced.pt"))
    options = ["--prompt", PROMPT, "--seed", "7", "--steps", STEPS, "--output", tmp_path / "picture.png"]
    run(BINARY, "generate", "--quiet", "--traced-unet", tmp_path / "unet_traced.pt", *options)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), expected)
