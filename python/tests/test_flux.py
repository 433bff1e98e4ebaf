"""FLUX.1's pipeline draws what diffusers draws, and its parts are transformers' and diffusers'."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

import tch_diffusers

FLUX = Path(__file__).parents[2] / "tests/fixtures/generated/flux_pipeline/_models"
PROMPT = "a red circle on the blue background"


def load(library: Any, model: str = "dev") -> Any:
    """The pipeline of a library."""
    pipe = library.FluxPipeline.from_pretrained(FLUX / model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A pipeline of diffusers."""
    return load(diffusers)


@pytest.fixture
def ours() -> Any:
    """A pipeline of this library."""
    return load(tch_diffusers)


def draw(pipe: Any, prompt: Any = PROMPT, **arguments: Any) -> Any:
    """Pictures as an array, of few steps."""
    options = {"num_inference_steps": 3, "height": 32, "width": 40, "output_type": "np", **arguments}
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(7), **options).images)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt_2": "a cat on the window", "guidance_scale": 7.0},
        {"prompt": ["a red ring", "dog"], "num_images_per_prompt": 2},
        {"negative_prompt": "green square", "true_cfg_scale": 3.0},
        {"sigmas": [1.0, 0.6, 0.2]},
        {"height": 37, "width": 50, "num_inference_steps": 1},
        {"max_sequence_length": 16},
        {"output_type": "latent"},
    ],
    ids=lambda arguments: ",".join(arguments) or "plain",
)
def test_pictures_equal_those_of_diffusers(ours, theirs, arguments):
    np.testing.assert_array_equal(draw(ours, **arguments), draw(theirs, **arguments))


def test_components_of_both_libraries_mix(ours, theirs):
    expected = draw(theirs)
    for name in ("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler"):
        pipe = tch_diffusers.FluxPipeline(**{**ours.components, name: theirs.components[name]})
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(draw(pipe), expected, err_msg=name)


def test_the_folder_says_which_pipeline_it_holds(ours):
    pipe = tch_diffusers.DiffusionPipeline.from_pretrained(FLUX / "dev")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is tch_diffusers.FluxPipeline
    np.testing.assert_array_equal(draw(pipe), draw(ours))
    with pytest.raises(NotImplementedError, match="not a StableDiffusionPipeline"):
        tch_diffusers.StableDiffusionPipeline.from_pretrained(FLUX / "dev")


def test_a_saved_pipeline_is_read_by_diffusers(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    # Of the same file: where weights lie in memory decides last bits.
    pictures = []
    for library in (tch_diffusers, diffusers):
        again = library.FluxPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
        again.set_progress_bar_config(disable=True)
        pictures.append(draw(again))
    np.testing.assert_array_equal(*pictures)
    np.testing.assert_allclose(pictures[0], draw(ours), rtol=0, atol=1e-6)


def test_techniques_change_no_bit(ours):
    plain = draw(ours)
    ours.enable_model_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(ours), plain)
    ours.enable_sequential_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(ours), plain)
    ours.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)
    np.testing.assert_array_equal(draw(ours), plain)
    ours.remove_all_hooks()
    ours.transformer.enable_layerwise_casting()
    assert ours.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert ours.transformer.transformer_blocks[0].norm1.linear.weight.dtype == torch.float32
    assert (draw(ours) != plain).any()
    ours.reset()
    np.testing.assert_array_equal(draw(ours), plain)


def test_a_callback_changes_latents_and_interrupts(ours):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, list(tensors)))
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = draw(ours, num_inference_steps=4, output_type="latent", callback_on_step_end=callback)
    assert seen == [(0, ["latents"]), (1, ["latents"])]
    assert not images.any()


@pytest.mark.parametrize("arguments", [{"max_sequence_length": 513}, {"height": 2}, {"prompt_embeds": torch.zeros(1, 2, 32)}])
def test_arguments_that_do_not_fit_are_refused(ours, arguments):
    with pytest.raises(ValueError):
        draw(ours, **arguments)


def test_t5_tokenizer_equals_transformers(ours, tmp_path):
    folder = FLUX / "pieces"
    mine, reference = tch_diffusers.T5Tokenizer.from_pretrained(folder), transformers.T5TokenizerFast.from_pretrained(folder)
    texts = ["a red circle", "ein röter Kreis ⭐ 赤い円", "", "<extra_id_3>  ｆｕｌｌ"]
    told = {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "pt"}
    assert torch.equal(mine(texts, **told).input_ids, reference(texts, **told).input_ids)
    assert [mine(text).input_ids for text in texts] == [reference(text).input_ids for text in texts]
    assert (len(mine), mine.eos_token, mine.pad_token_id) == (len(reference), "</s>", 0)
    assert mine.model_max_length == reference.model_max_length


def test_t5_keeps_its_float32_island_in_float16():
    options = {"subfolder": "text_encoder_2", "torch_dtype": torch.float16}
    ours = tch_diffusers.T5EncoderModel.from_pretrained(FLUX / "dev", **options)
    theirs = transformers.T5EncoderModel.from_pretrained(FLUX / "dev", **options)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)
    kinds = {key: weight.dtype for key, weight in theirs.named_parameters()}
    assert {key: weight.dtype for key, weight in ours.named_parameters()} == {key: kinds[key] for key in dict(ours.named_parameters())}


def test_flow_matching_walks_as_in_diffusers():
    options = {"use_dynamic_shifting": True, "shift": 3.0}
    ours = tch_diffusers.FlowMatchEulerDiscreteScheduler(**options)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    mine, other = ({key: value for key, value in one.config.items() if not key.startswith("_")} for one in (ours, theirs))
    assert mine == other
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.2], mu=0.9)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.sigmas, theirs.sigmas)
    sample = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mine, other = sample, sample
    for t in theirs.timesteps:
        mine = ours.step(torch.sin(mine), t, mine).prev_sample
        other = theirs.step(torch.sin(other), t, other).prev_sample
        assert torch.equal(mine, other)
    with pytest.raises(NotImplementedError, match="per_token_timesteps"):
        ours.step(sample, 1.0, sample, per_token_timesteps=sample)


def test_one_pipeline_reads_the_prompt_and_another_one_draws(ours):
    """What saves memory in diffusers' guides: T5 and the transformer are never there together."""
    names = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    reader = tch_diffusers.FluxPipeline.from_pretrained(FLUX / "dev", transformer=None, vae=None)
    with torch.no_grad():
        embeds, pooled, _ = reader.encode_prompt(PROMPT)
    painter = tch_diffusers.FluxPipeline.from_pretrained(FLUX / "dev", **dict.fromkeys(names))
    painter.set_progress_bar_config(disable=True)
    drawn = draw(painter, None, prompt_embeds=embeds, pooled_prompt_embeds=pooled)
    np.testing.assert_array_equal(drawn, draw(ours))
    with pytest.raises(ValueError, match="no `text_encoder`: give embeddings"):
        draw(painter)
