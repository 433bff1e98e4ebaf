"""Components of both libraries, and whatever can be called, in the place of each other."""

import functools
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
from conftest import draw

import tch_diffusers
from tch_diffusers import AutoencoderKL, CLIPTextModel, StableDiffusionPipeline, UNet2DConditionModel


@pytest.fixture(scope="module")
def expected(reference):
    return draw(reference)


@pytest.fixture(scope="module")
def traced(model, tmp_path_factory):
    """The bundled UNet, traced by Python's own tracer."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    unet.forward = functools.partial(unet.forward, return_dict=False)
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    inputs = (
        torch.randn(2, 4, 16, 16, generator=generator),
        torch.rand(1, generator=generator) * 999,
        torch.randn(2, 24, width, generator=generator),
    )
    with torch.no_grad():
        module = torch.jit.trace(unet, inputs)
        assert torch.equal(module(*inputs)[0], unet(*inputs)[0])
    path = tmp_path_factory.mktemp("traced") / "unet_traced.pt"
    module.eval().save(path)
    return path


def test_our_models_in_a_diffusers_pipeline(model, theirs, expected):
    theirs.unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    theirs.vae = AutoencoderKL.from_pretrained(model, subfolder="vae")
    theirs.text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    theirs.scheduler = tch_diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    np.testing.assert_array_equal(draw(theirs), expected)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_of_diffusers_in_our_pipeline(pipe, reference, expected, name):
    setattr(pipe, name, getattr(reference, name))
    np.testing.assert_array_equal(draw(pipe), expected)


def test_a_pipeline_of_diffusers_parts_alone(theirs, expected):
    pipe = StableDiffusionPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(draw(pipe), expected)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "LMSDiscreteScheduler", "DDPMScheduler"])
def test_schedulers_that_we_lack_come_from_diffusers(pipe, theirs, name):
    for one in (pipe, theirs):
        one.scheduler = getattr(diffusers, name).from_config(dict(one.scheduler.config))
    np.testing.assert_array_equal(draw(pipe), draw(theirs))


def test_a_traced_unet_by_its_class_in_the_guides(pipe, traced, expected):
    @dataclass
    class UNet2DConditionOutput:
        sample: torch.Tensor

    unet_traced = torch.jit.load(traced)

    class TracedUNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_channels = pipe.unet.config.in_channels
            self.device = pipe.unet.device

        def forward(self, latent_model_input, t, encoder_hidden_states):
            sample = unet_traced(latent_model_input, t, encoder_hidden_states)[0]
            return UNet2DConditionOutput(sample=sample)

    pipe.unet = TracedUNet()
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(NotImplementedError, match="a TracedUNet"):
        pipe.enable_attention_slicing()
    with pytest.raises(NotImplementedError, match="`unet` is a TracedUNet"):
        pipe.enable_model_cpu_offload()


def test_a_traced_unet_by_its_file(pipe, traced, expected):
    pipe.unet = traced
    np.testing.assert_array_equal(draw(pipe), expected)
    np.testing.assert_array_equal(draw(pipe, height=96, width=160).shape, (1, 96, 160, 3))


def test_any_function_takes_the_unets_place(pipe):
    pipe.unet = lambda sample, t, encoder_hidden_states: torch.zeros_like(sample)
    assert draw(pipe).shape == (1, 128, 128, 3)


def test_an_error_in_a_callable_comes_out_as_it_is(pipe):
    class Mine(Exception):
        pass

    def broken(*_):
        raise Mine

    pipe.unet = broken
    with pytest.raises(Mine):
        draw(pipe)
