"""Tensors and generators cross without a copy."""

import gc
import threading

import pytest
import torch

from tch_diffusers import UNet2DConditionModel
from tch_diffusers.schedulers import EulerAncestralDiscreteScheduler

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_comes_back_as_the_very_same_object(pipe, dtype):
    weight = torch.zeros(pipe.unet.conv_out.weight.shape).to(dtype)
    pipe.unet.conv_out.load_state_dict({"weight": weight, "bias": pipe.unet.conv_out.bias}, assign=True)
    again = pipe.unet.conv_out.weight
    assert again.data_ptr() == weight.data_ptr() and again.dtype == dtype
    assert pipe.unet.state_dict()["conv_out.weight"].data_ptr() == weight.data_ptr()


def test_the_object_itself_survives(pipe):
    timestep_scaled = torch.randn(2, 4, 16, 16)
    assert pipe.scheduler.scale_model_input(timestep_scaled, 981) is timestep_scaled


def test_writing_in_place_is_seen_by_both_sides(pipe):
    with torch.no_grad():
        pipe.unet.conv_out.weight.zero_()
        pipe.unet.conv_out.bias.fill_(2.0)
    text = torch.zeros(1, 24, pipe.unet.config.cross_attention_dim)
    assert torch.all(pipe.unet(torch.randn(1, 4, 16, 16), 5, text).sample == 2.0)


def test_replacing_the_data_of_a_weight_is_seen(pipe):
    bias = pipe.unet.conv_out.bias
    bias.data = torch.full_like(bias, 3.0)
    with torch.no_grad():
        pipe.unet.conv_out.weight.zero_()
    text = torch.zeros(1, 24, pipe.unet.config.cross_attention_dim)
    assert torch.all(pipe.unet(torch.randn(1, 4, 16, 16), 5, text).sample == 3.0)


def test_a_million_crossings_leak_nothing(pipe):
    sample = torch.zeros(1)
    before = sample._use_count()
    for _ in range(10_000):
        pipe.scheduler.scale_model_input(sample, 1)
    gc.collect()
    assert sample._use_count() == before


def test_what_is_no_tensor_is_refused_by_name(pipe):
    with pytest.raises(TypeError, match="a torch.Tensor is expected, not list"):
        pipe.scheduler.scale_model_input([1.0], 981)


def test_a_generator_is_drawn_from_where_it_stands():
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(4)
    generator, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    sample = torch.zeros(2, 4, 8, 8)
    scheduler.step(sample, scheduler.timesteps[0], sample, generator=generator)
    torch.randn(sample.shape, generator=twin)
    assert torch.equal(generator.get_state(), twin.get_state())
    assert generator.initial_seed() == 3


def test_several_generators_draw_one_item_each():
    sample = torch.zeros(2, 4, 8, 8)

    def step(*seeds, batch):
        scheduler = EulerAncestralDiscreteScheduler()
        scheduler.set_timesteps(4)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return scheduler.step(batch, scheduler.timesteps[0], batch, generator=generators).prev_sample

    both = step(1, 2, batch=sample)
    assert torch.equal(both[1:], step(2, batch=sample[1:]))
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        step(1, 2, batch=torch.zeros(3, 4, 8, 8))


def test_another_thread_runs_during_a_forward(model):
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    sample, text = torch.randn(8, 4, 32, 32), torch.randn(8, 24, unet.config.cross_attention_dim)
    done, ticks = threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(None)
            done.wait(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    before = len(ticks)
    with torch.no_grad():
        unet._core.forward(sample, torch.tensor(5), text, None)
    during = len(ticks) - before
    done.set()
    thread.join()
    assert during > 2, f"the other thread ran {during} times"


def test_two_threads_share_a_model(model):
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    sample, text = torch.randn(1, 4, 16, 16), torch.randn(1, 24, unet.config.cross_attention_dim)
    with torch.no_grad():
        expected = unet(sample, 5, text).sample
    results = []

    def run():
        with torch.no_grad():
            results.append(unet(sample, 5, text).sample)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)
