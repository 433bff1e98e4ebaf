"""Bad input, faults and threads: each ends in an exception of Python's own kind, and the next picture is the right one."""

import threading

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

import tch_diffusers

NAN, INFINITY = float("nan"), float("inf")


def small(pipe, **arguments):
    return draw(pipe, **{"height": 64, "width": 64, "num_inference_steps": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 0}, ["`height` and `width`", "divisible by 8", "0"]),
        ({"width": -8}, ["divisible by 8", "-8"]),
        ({"width": 100}, ["divisible by 8", "100"]),
        ({"prompt": []}, ["no prompt"]),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, ["1 negative prompts for 2 prompts"]),
        ({"guidance_scale": NAN}, ["`guidance_scale`", "finite", "nan"]),
        ({"guidance_scale": INFINITY}, ["`guidance_scale`", "finite", "inf"]),
        ({"guidance_rescale": NAN}, ["`guidance_rescale`", "finite"]),
        ({"eta": -INFINITY}, ["`eta`", "finite"]),
        ({"num_inference_steps": 0}, ["`num_inference_steps`", "at least 1"]),
        ({"num_inference_steps": -4}, ["`num_inference_steps`", "at least 1", "-4"]),
        ({"num_inference_steps": 10**6}, ["1000"]),
        ({"num_images_per_prompt": 0}, ["`num_images_per_prompt`", "at least 1"]),
        ({"timesteps": []}, ["timesteps"]),
        ({"latents": torch.zeros(1, 4, 9, 8)}, ["`latents`", "(1, 4, 8, 8)", "(1, 4, 9, 8)"]),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, ["`latents`", "floating-point"]),
        ({"prompt": None, "prompt_embeds": torch.zeros(77, 64)}, ["`prompt_embeds`", "(77, 64)"]),
        ({"clip_skip": 99}, ["clip_skip", "99"]),
        ({"output_type": "gif"}, ["gif"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit_are_value_errors(pipe, arguments, words):
    before = small(pipe)
    with pytest.raises(ValueError) as raised:
        small(pipe, **arguments)
    for word in words:
        assert word in str(raised.value)
    np.testing.assert_array_equal(small(pipe), before)


@pytest.mark.parametrize("wrong", [{"strength": NAN}, {"guidance_scale": NAN}, {"num_inference_steps": 0}, {"eta": NAN}])
def test_pictures_from_pictures_refuse_the_same(pipe, wrong):
    picture, mask = Image.new("RGB", (64, 64), "blue"), Image.new("L", (64, 64), 255)
    redraws = tch_diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        redraws("x", image=picture, **wrong)
    inpaints = tch_diffusers.StableDiffusionInpaintPipeline.from_pipe(pipe)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        inpaints("x", image=picture, mask_image=mask, **wrong)


def test_a_device_that_is_not_there_is_refused_in_one_sentence(pipe):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    before = small(pipe)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)) as raised:
        pipe.to("cuda")
    assert "\n" not in str(raised.value)
    with pytest.raises((ValueError, RuntimeError), match="abacus"):
        pipe.to("abacus")
    np.testing.assert_array_equal(small(pipe), before)


@pytest.mark.parametrize("technique", ["plain", "enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_an_exception_in_a_callback_comes_out_and_the_next_picture_is_right(pipe, technique):
    if technique != "plain":
        getattr(pipe, technique)(device="cpu")
    before = small(pipe)

    class Enough(Exception):
        pass

    def fail(pipe, step, timestep, tensors):
        raise Enough(step)

    for _ in range(2):
        with pytest.raises(Enough):
            small(pipe, callback_on_step_end=fail)
        np.testing.assert_array_equal(small(pipe), before)


def test_a_tensor_of_another_shape_from_a_callback_names_the_module(pipe):
    before = small(pipe)

    def shrink(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"][:, :3]}

    with pytest.raises((ValueError, RuntimeError), match="conv_in"):
        small(pipe, callback_on_step_end=shrink)
    np.testing.assert_array_equal(small(pipe), before)


def addresses(pipe):
    models = (pipe.text_encoder, pipe.unet, pipe.vae)
    return [weight.data_ptr() for model in models for weight in model.state_dict().values()]


def test_a_shared_pipeline_has_the_very_weights_and_a_scheduler_of_its_own(pipe):
    second = pipe.share()
    assert type(second) is type(pipe) and addresses(second) == addresses(pipe)
    assert second.scheduler is not pipe.scheduler and dict(second.scheduler.config) == dict(pipe.scheduler.config)
    before = small(pipe)
    second.unet.to(torch.bfloat16)
    second.scheduler = tch_diffusers.DDIMScheduler.from_config(second.scheduler.config)
    assert addresses(second) != addresses(pipe)
    np.testing.assert_array_equal(small(pipe), before)
    pipe.vae.enable_tiling()
    assert pipe.share().vae.use_tiling and not second.vae.use_tiling
    redraws = tch_diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe).share()
    assert isinstance(redraws, tch_diffusers.StableDiffusionImg2ImgPipeline) and addresses(redraws) == addresses(pipe)


def test_threads_with_a_pipeline_each_draw_what_one_draws_alone(pipe):
    prompts = ["a red circle", "a blue ring", "a yellow star", "a green square"]
    alone = [small(pipe, prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    together = {}

    def run(own, seed, prompt):
        for _ in range(2):
            together.setdefault(seed, []).append(small(own, prompt=prompt, seed=seed))

    runs = [(pipe.share(), seed, prompt) for seed, prompt in enumerate(prompts)]
    threads = [threading.Thread(target=run, args=each) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        assert len(together[seed]) == 2
        for picture in together[seed]:
            np.testing.assert_array_equal(picture, expected)


def test_weights_that_are_lent_to_one_pipeline_are_not_shared(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="model offloading"):
        pipe.share()
    pipe.remove_all_hooks()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match="layerwise casting"):
        pipe.share()
