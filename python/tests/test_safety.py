"""The safety checker: the same pictures are looked at, judged and blackened as in diffusers."""

import json
import logging
import shutil
import warnings

import diffusers
import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as TheirChecker
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import tch_diffusers
from tch_diffusers import CLIPImageProcessor, StableDiffusionPipeline, StableDiffusionSafetyChecker

FEW = {"num_inference_steps": 2, "num_images_per_prompt": 4}


def generator():
    return torch.Generator().manual_seed(7)


def pictures(pipe, **arguments):
    return pipe(PROMPT, generator=generator(), **{**FEW, "output_type": "np", **arguments})


@pytest.fixture(scope="module")
def equipped(model, tmp_path_factory):
    """The bundled model with a tiny safety checker that finds something in half of four pictures; diffusers wrote it."""
    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    vision = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    text |= dict(bos_token_id=0, eos_token_id=1)
    checker = TheirChecker(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in checker.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1) + (weight.ndim == 1))
        checker.concept_embeds.copy_(torch.randn_like(checker.concept_embeds))
    extractor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    seen = []

    def look(images, clip_input):
        seen.append(clip_input)
        return images, [False] * len(images)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_checker, pipe.feature_extractor = look, extractor
    pictures(pipe)
    with torch.no_grad():
        embeds = checker.visual_projection(checker.vision_model(seen[0])[1])
        likeness = cosine_distance(embeds, checker.concept_embeds)
        ranked = likeness.sort(dim=0).values
        best = int((ranked[2] - ranked[1]).argmax())
        checker.concept_embeds_weights.fill_(2.0)
        checker.concept_embeds_weights[best] = ranked[1:3, best].mean()
        checker.special_care_embeds_weights.fill_(2.0)
    folder = tmp_path_factory.mktemp("equipped") / "model"
    pipe = diffusers.StableDiffusionPipeline(
        **{**pipe.components, "safety_checker": checker, "feature_extractor": extractor}, requires_safety_checker=True
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def ours(equipped):
    pipe = StableDiffusionPipeline.from_pretrained(equipped)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def reference(equipped):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(equipped, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_the_same_pictures_are_black(ours, reference, output_type, caplog):
    found, expected = pictures(ours, output_type=output_type), pictures(reference, output_type=output_type)
    np.testing.assert_array_equal(np.asarray(found.images), np.asarray(expected.images))
    assert found.nsfw_content_detected == expected.nsfw_content_detected
    assert sorted(found.nsfw_content_detected) == [False, False, True, True]
    for image, flag in zip(found.images, found.nsfw_content_detected):
        assert (np.asarray(image).max() == 0) == flag
    assert "not safe for work" in caplog.text
    latents, flags = ours(PROMPT, generator=generator(), **FEW, output_type="latent", return_dict=False)
    assert flags is None and latents.shape[0] == 4


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_pipelines_that_start_from_pictures_look_as_well(ours, reference, name):
    given = {"image": Image.new("RGB", (128, 128), "blue"), "strength": 0.8}
    if "Inpaint" in name:
        given["mask_image"] = Image.new("L", (128, 128), 255)
    one = getattr(tch_diffusers, name).from_pipe(ours)
    other = getattr(diffusers, name)(**reference.components)
    other.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (pictures(pipe, num_inference_steps=3, **given) for pipe in (one, other))
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.nsfw_content_detected == expected.nsfw_content_detected


def test_a_folder_without_it_or_a_call_that_says_none(equipped, ours, caplog):
    with caplog.at_level(logging.WARNING):
        pipe = StableDiffusionPipeline.from_pretrained(equipped, safety_checker=None)
    assert "there is no safety checker" in caplog.text
    pipe.set_progress_bar_config(disable=True)
    found = pictures(pipe)
    assert found.nsfw_content_detected is None and found.images.min(axis=(1, 2, 3)).max() >= 0
    assert all(image.max() > 0 for image in found.images)
    caplog.clear()
    StableDiffusionPipeline.from_pretrained(equipped, safety_checker=None, requires_safety_checker=False)
    assert caplog.text == ""
    with pytest.raises(ValueError, match="needs a `feature_extractor`"):
        StableDiffusionPipeline(**{**ours.components, "feature_extractor": None})


def test_parts_of_both_libraries_and_callables_mix(ours, reference):
    expected = pictures(reference)
    ours.safety_checker = reference.safety_checker
    np.testing.assert_array_equal(pictures(ours).images, expected.images)
    ours.feature_extractor = reference.feature_extractor
    np.testing.assert_array_equal(pictures(ours).images, expected.images)

    def first_is_bad(images, clip_input):
        images[0] = 0
        return images, [True] + [False] * (len(images) - 1)

    ours.safety_checker = first_is_bad
    found = pictures(ours)
    assert found.nsfw_content_detected == [True, False, False, False]
    assert found.images[0].max() == 0 < found.images[1].max()
    assert found.nsfw_content_detected is not None


def test_our_checker_in_a_pipeline_of_diffusers(equipped, reference):
    expected = pictures(reference)
    own = StableDiffusionSafetyChecker.from_pretrained(equipped, subfolder="safety_checker")
    components = {**reference.components, "safety_checker": own}
    components["feature_extractor"] = CLIPImageProcessor.from_pretrained(equipped, subfolder="feature_extractor")
    pipe = diffusers.StableDiffusionPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    found = pictures(pipe)
    np.testing.assert_array_equal(found.images, expected.images)
    assert found.nsfw_content_detected == expected.nsfw_content_detected


def test_a_saved_pipeline_keeps_it(ours, tmp_path):
    expected = pictures(ours)
    ours.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    assert index["requires_safety_checker"] is True
    for library in (tch_diffusers, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(pictures(pipe).images, expected.images)
    shutil.rmtree(tmp_path / "safety_checker")
    with pytest.raises(OSError, match="safety_checker"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_it_moves_and_is_left_where_others_are_offloaded(ours):
    expected = pictures(ours).images
    for enable in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        getattr(ours, enable)(device="cpu")
        np.testing.assert_array_equal(pictures(ours).images, expected)
    ours.enable_group_offload("cpu", offload_type="leaf_level")
    np.testing.assert_array_equal(pictures(ours).images, expected)
    ours.enable_group_offload("cpu", offload_type="leaf_level", exclude_modules="safety_checker")
    np.testing.assert_array_equal(pictures(ours).images, expected)
    ours.remove_all_hooks()
    ours.to(torch.bfloat16)
    assert ours.safety_checker.dtype == torch.bfloat16
    assert pictures(ours).nsfw_content_detected is not None


@pytest.mark.parametrize("size", [(64, 64), (75, 69), (40, 90), (17, 16), (8, 5), (1, 3)])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_pictures_are_looked_at_in_the_same_numbers(size, mode, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    configs = [
        {},
        {"size": 24, "crop_size": 20},
        {"size": {"height": 9, "width": 14}, "crop_size": {"height": 30, "width": 4}, "resample": 1},
        {"do_resize": False, "crop_size": {"height": 15, "width": 40}, "do_normalize": False},
        {"do_center_crop": False, "do_rescale": False, "rescale_factor": 0.01},
    ]
    for number, config in enumerate(configs):
        theirs = CLIPImageProcessorPil(**config)
        expected = theirs(image, return_tensors="pt").pixel_values
        assert torch.equal(CLIPImageProcessor(**config)(image).pixel_values, expected), config
        theirs.save_pretrained(tmp_path / str(number))
        own = CLIPImageProcessor.from_pretrained(tmp_path / str(number))
        assert torch.equal(own(image).pixel_values, expected), config
        own.save_pretrained(tmp_path / "back")
        back = CLIPImageProcessorPil.from_pretrained(tmp_path / "back")
        assert torch.equal(back(image, return_tensors="pt").pixel_values, expected), config
