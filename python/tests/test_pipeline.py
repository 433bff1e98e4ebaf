"""The pipeline draws what diffusers draws, with every argument."""

import os
import signal
import threading
import time

import diffusers
import numpy as np
import pytest
import torch
from conftest import PROMPT, draw
from PIL import Image

import tch_diffusers

SCHEDULERS = [
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


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt": ["a red ring", "a green circle"], "negative_prompt": ["blue", "white"]},
        {"num_images_per_prompt": 2, "guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"height": 96, "width": 160},
        {"eta": 0.5},
        {"negative_prompt": "a blue square"},
        {"output_type": "latent"},
        {"output_type": "pt"},
    ],
    ids=lambda arguments: ",".join(arguments) or "plain",
)
def test_pictures_equal_those_of_diffusers(pipe, reference, arguments):
    ours, theirs = draw(pipe, **arguments), draw(reference, **arguments)
    assert type(ours) is type(theirs)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_scheduler_draws_the_picture_that_it_draws_in_diffusers(pipe, theirs, name):
    pipe.scheduler = getattr(tch_diffusers, name).from_config(pipe.scheduler.config)
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
    np.testing.assert_array_equal(draw(pipe, num_inference_steps=5), draw(theirs, num_inference_steps=5))


def test_pictures_are_pil_images_by_default(pipe, reference):
    def picture(pipe):
        return pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images

    ours, theirs = picture(pipe), picture(reference)
    assert isinstance(ours[0], Image.Image) and ours[0].size == (128, 128)
    assert ours[0].tobytes() == theirs[0].tobytes()


def test_the_generator_stands_where_it_stands_after_diffusers(pipe, reference):
    states = []
    for one in (pipe, reference):
        generator = torch.Generator().manual_seed(7)
        one(PROMPT, num_inference_steps=2, generator=generator, eta=0.5, output_type="latent")
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_the_global_seed_counts_without_a_generator(pipe, reference):
    pictures = []
    for one in (pipe, reference):
        torch.manual_seed(11)
        pictures.append(one(PROMPT, num_inference_steps=2, output_type="np").images)
    np.testing.assert_array_equal(*pictures)


def test_one_generator_for_each_picture(pipe, reference):
    pictures = []
    for one in (pipe, reference):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        pictures.append(one([PROMPT] * 2, num_inference_steps=2, generator=generators, output_type="np").images)
    np.testing.assert_array_equal(*pictures)
    np.testing.assert_allclose(draw(pipe, seed=2, num_inference_steps=2)[0], pictures[0][1], atol=1e-5)


def test_embeddings_in_the_place_of_texts(pipe, reference):
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        expected, expected_negative = reference.encode_prompt(PROMPT, "cpu", 1, True)
    assert torch.equal(embeds, expected) and torch.equal(negative, expected_negative)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    np.testing.assert_array_equal(draw(pipe, None, **given), draw(reference))


def test_clip_skip_leaves_layers_out(pipe, reference):
    assert not np.array_equal(draw(pipe, clip_skip=1), draw(reference))


def test_a_tuple_instead_of_an_output(pipe):
    images, nsfw = pipe(PROMPT, num_inference_steps=1, output_type="np", return_dict=False)
    assert images.shape == (1, 128, 128, 3) and nsfw is None


def test_a_callback_sees_and_changes_tensors(pipe, reference):
    def record(into):
        def callback(pipe, step, timestep, tensors):
            into.append((step, int(timestep), tensors["latents"].clone()))
            return {"latents": tensors["latents"] * 0.5}

        return callback

    seen, expected = [], []
    ours = draw(pipe, callback_on_step_end=record(seen))
    theirs = draw(reference, callback_on_step_end=record(expected))
    np.testing.assert_array_equal(ours, theirs)
    assert [entry[:2] for entry in seen] == [entry[:2] for entry in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, expected))


def test_a_callback_ends_the_call_or_its_guidance(pipe, reference):
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    draw(pipe, num_inference_steps=5, callback_on_step_end=interrupt)
    assert steps == [0, 1]

    def no_guidance(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    options = {"callback_on_step_end": no_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    np.testing.assert_array_equal(draw(pipe, **options), draw(reference, **options))


def test_custom_timesteps_and_sigmas(pipe, theirs):
    for one, library in ((pipe, tch_diffusers), (theirs, diffusers)):
        one.scheduler = library.EulerDiscreteScheduler.from_config(one.scheduler.config)
    steps = [900, 500, 100]
    np.testing.assert_array_equal(draw(pipe, timesteps=steps), draw(theirs, timesteps=steps))
    sigmas = [14.0, 5.0, 1.0, 0.0]
    np.testing.assert_array_equal(draw(pipe, sigmas=sigmas), draw(theirs, sigmas=sigmas))
    pipe.scheduler = tch_diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="takes no custom timesteps"):
        draw(pipe, timesteps=steps)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"height": 100}, ValueError, "divisible by 8"),
        ({"prompt": None}, ValueError, "either `prompt` or `prompt_embeds`"),
        ({"prompt": 5}, ValueError, "a text or a list of texts"),
        ({"negative_prompt": ["a", "b"]}, TypeError, "`negative_prompt` has to be a text"),
        ({"output_type": "jpg"}, ValueError, "one of pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "no \\['noise'\\]"),
        ({"ip_adapter_image": 1}, NotImplementedError, "IP-Adapters"),
        ({"cross_attention_kwargs": {"gligen": 1}}, NotImplementedError, "cross_attention_kwargs"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipe, arguments, error, text):
    with pytest.raises(error, match=text):
        draw(pipe, **arguments)


@pytest.fixture
def interruptible():
    """A shell has programs in the background ignore SIGINT, and pytest may be one of them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_control_c_stops_between_two_steps(pipe):
    steps = []

    def note(pipe, step, timestep, tensors):
        steps.append(step)
        return tensors

    def interrupt():
        while not steps:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        draw(pipe, num_inference_steps=400, callback_on_step_end=note)
    thread.join()
    assert 0 < len(steps) < 400
    assert draw(pipe, num_inference_steps=1).shape == (1, 128, 128, 3)


def test_the_progress_bar_is_tqdms(pipe, capsys):
    pipe.set_progress_bar_config(desc="drawing")
    draw(pipe)
    assert "drawing" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    draw(pipe)
    assert capsys.readouterr().err == ""


def test_a_long_prompt_is_cut_with_a_warning(pipe, caplog):
    draw(pipe, "star " * 100, num_inference_steps=1)
    assert "this part of the prompt was cut" in caplog.text
