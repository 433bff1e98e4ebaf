"""Schedulers alone."""

import inspect
import json
from functools import partial

import diffusers
import pytest
import torch

import tch_diffusers
from tch_diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler

NAMES = [
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]
OPTIONS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def both(name, **options):
    return getattr(tch_diffusers, name)(**options), getattr(diffusers, name)(**options)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_diffusers(name):
    ours, theirs = (getattr(library, name) for library in (tch_diffusers, diffusers))
    for method in filter(partial(hasattr, theirs), ("__init__", "set_timesteps", "step", "add_noise")):
        own = inspect.signature(getattr(ours, method)).parameters
        expected = inspect.signature(getattr(theirs, method)).parameters
        assert list(own) == list(expected), method
        defaults = [(key, parameter.default) for key, parameter in expected.items()]
        assert [(key, parameter.default) for key, parameter in own.items()] == defaults, method


@pytest.mark.parametrize("name", NAMES)
def test_configurations_are_diffusers(name):
    ours, theirs = both(name, **OPTIONS)
    own, expected = dict(ours.config), dict(theirs.config)
    assert own.pop("_class_name") == name and own.pop("_diffusers_version") == diffusers.__version__
    assert set(own) == set(expected)
    assert set(own.pop("_use_default_values")) == set(expected.pop("_use_default_values"))
    assert own == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_as_in_diffusers(name):
    ours, theirs = both(name, **OPTIONS)
    for one in (ours, theirs):
        one.set_timesteps(8)
    assert torch.equal(ours.timesteps, theirs.timesteps) and ours.timesteps.dtype == theirs.timesteps.dtype
    assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma) and ours.order == theirs.order
    assert ours.num_inference_steps == theirs.num_inference_steps
    generator = torch.Generator().manual_seed(0)
    sample = expected = torch.randn(2, 4, 8, 8, generator=generator)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    extra = "generator" in inspect.signature(ours.step).parameters
    for t in theirs.timesteps:
        output = torch.randn(2, 4, 8, 8, generator=generator)
        assert torch.equal(ours.scale_model_input(sample, t), theirs.scale_model_input(expected, t))
        own, other = ({"generator": one} if extra else {} for one in seeded)
        sample = ours.step(output, t, sample, **own).prev_sample
        expected = theirs.step(output, t, expected, return_dict=False, **other)[0]
        assert torch.equal(sample, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(getattr(diffusers, name), "add_noise")])
def test_noise_is_added_as_in_diffusers(name):
    ours, theirs = both(name, **OPTIONS)
    for one in (ours, theirs):
        one.set_timesteps(8)
    sample, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    steps = ours.timesteps[[1, 5]]
    assert torch.equal(ours.add_noise(sample, noise, steps), theirs.add_noise(sample, noise, steps))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_scheduler_is_read_back_by_both(name, tmp_path):
    ours = getattr(tch_diffusers, name)(**OPTIONS)
    ours.save_pretrained(tmp_path)
    again = getattr(tch_diffusers, name).from_pretrained(tmp_path)
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    options = {key: value for key, value in ours.config.items() if key != "_use_default_values"}
    assert dict(again.config) == options
    assert theirs.config.beta_end == again.config.beta_end == 0.012
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == name


def test_options_come_by_position_too():
    assert DDIMScheduler(500, 0.01).config.num_train_timesteps == 500
    with pytest.raises(TypeError):
        DDIMScheduler(beta_middle=0.1)


def test_going_to_another_scheduler_and_back_loses_nothing():
    ddim = DDIMScheduler(**OPTIONS, clip_sample=False)
    unipc = UniPCMultistepScheduler.from_config(ddim.config, solver_order=3)
    assert unipc.config.solver_order == 3 and unipc.config.beta_end == 0.012
    assert DDIMScheduler.from_config(unipc.config).config.clip_sample is False
    scheduler, unused = DDIMScheduler.from_config(ddim.config, return_unused_kwargs=True, more=1)
    assert scheduler.config.beta_end == 0.012 and unused == {"more": 1}


def test_infinite_options_are_numbers():
    config = tch_diffusers.DPMSolverMultistepScheduler().config
    assert config.lambda_min_clipped == -float("inf")


def test_wrong_options_are_value_errors():
    with pytest.raises(ValueError, match="beta_schedule"):
        DDIMScheduler(beta_schedule="steep")
    with pytest.raises(ValueError, match="cannot be used together"):
        EulerDiscreteScheduler(use_karras_sigmas=True, use_beta_sigmas=True)
    with pytest.raises(ValueError, match="not the number of a step"):
        EulerDiscreteScheduler().step(torch.zeros(1), 3, torch.zeros(1))
    with pytest.raises(ValueError, match="run `set_timesteps` first"):
        DDIMScheduler().step(torch.zeros(1), 3, torch.zeros(1))
    with pytest.raises(ValueError, match="after its|comes after"):
        scheduler = PNDMScheduler()
        scheduler.set_timesteps(10)
        scheduler.step_plms(torch.zeros(1), 3, torch.zeros(1))


def test_lms_combines_as_many_derivatives_as_it_is_told():
    ours, theirs = both("LMSDiscreteScheduler", **OPTIONS)
    for one in (ours, theirs):
        one.set_timesteps(6)
    sample = expected = torch.randn(1, 4, 8, 8)
    for t in theirs.timesteps:
        output = torch.randn(1, 4, 8, 8)
        ours.scale_model_input(sample, t), theirs.scale_model_input(expected, t)
        sample = ours.step(output, t, sample, order=2).prev_sample
        expected = theirs.step(output, t, expected, order=2).prev_sample
        assert torch.equal(sample, expected)


@pytest.mark.parametrize("run", [{"strength": 0.5}, {"original_inference_steps": 100}, {"timesteps": [900, 500, 100, 20]}])
def test_lcm_walks_a_share_of_the_distillation(run):
    ours, theirs = both("LCMScheduler")
    for one in (ours, theirs):
        one.set_timesteps(None if "timesteps" in run else 4, **run)
    assert torch.equal(ours.timesteps, theirs.timesteps) and ours.num_inference_steps == theirs.num_inference_steps
    assert ours.previous_timestep(ours.timesteps[1]) == theirs.previous_timestep(theirs.timesteps[1])
    output, sample = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    own, other = (one.step(output, one.timesteps[0], sample, g) for one, g in zip((ours, theirs), seeded))
    assert torch.equal(own.prev_sample, other.prev_sample) and torch.equal(own.denoised, other.denoised)


def test_an_older_name_of_an_option_is_understood():
    assert tch_diffusers.DDIMInverseScheduler(set_alpha_to_zero=False).config.set_alpha_to_one is False


def test_velocities_are_diffusers():
    ours, theirs = both("DDIMScheduler", **OPTIONS)
    sample, noise, steps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    assert torch.equal(ours.get_velocity(sample, noise, steps), theirs.get_velocity(sample, noise, steps))


def test_noise_schedules_are_diffusers():
    for options in (OPTIONS, {**OPTIONS, "rescale_betas_zero_snr": True}):
        ours, theirs = both("DDIMScheduler", **options)
        assert torch.equal(ours.betas, theirs.betas) and torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
