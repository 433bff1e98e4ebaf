"""Image-to-image and inpainting draw what diffusers draws, with every argument."""

import json

import diffusers
import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers.image_processor import VaeImageProcessor as Theirs
from PIL import Image

import tch_diffusers
from tch_diffusers.image_processor import VaeImageProcessor

REDRAWS, INPAINTS = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"


def noise(size=(128, 128), mode="RGB", seed=0):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def hole(size=(128, 128), box=(40, 40, 90, 100)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@pytest.fixture
def both(pipe, theirs):
    """Both libraries' pipelines of a class, on the same components."""

    def of(name):
        ours = getattr(tch_diffusers, name).from_pipe(pipe)
        reference = getattr(diffusers, name)(**theirs.components, requires_safety_checker=False)
        reference.set_progress_bar_config(disable=True)
        return ours, reference

    return of


def drawn(pipe, prompt=PROMPT, seed=7, **arguments):
    options = {"num_inference_steps": 4, "output_type": "np", **arguments}
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else None
    generator = generator or [torch.Generator().manual_seed(one) for one in seed]
    return np.asarray(pipe(prompt, generator=generator, **options).images)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strength": 0.5},
        {"strength": 1.0},
        {"guidance_scale": 1.0},
        {"prompt": ["a red ring", "a green circle"], "image": [noise(), noise(seed=1)], "negative_prompt": ["blue", "white"]},
        {"prompt": ["a red ring", "a green circle"], "seed": [1, 2]},
        {"num_images_per_prompt": 2},
        {"image": noise((100, 75))},
        {"image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))},
        {"image": np.asarray(noise((64, 64)), np.float32)[None] / 255},
        {"image": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))},
        {"eta": 0.5},
        {"output_type": "latent"},
    ],
    ids=lambda arguments: ",".join(arguments) or "plain",
)
def test_image_to_image_equals_diffusers(both, arguments):
    pipes = both(REDRAWS)
    pictures = [drawn(pipe, **{"image": noise(), **arguments}) for pipe in pipes]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"strength": 0.5},
        {"guidance_scale": 1.0, "strength": 0.8},
        {"prompt": ["a red ring", "a green circle"], "mask_image": [hole(), hole(box=(0, 0, 50, 128))]},
        {"prompt": ["a red ring", "a green circle"], "seed": [1, 2]},
        {"num_images_per_prompt": 2},
        {"image": noise((100, 75)), "mask_image": noise((90, 90), "L")},
        {"height": 96, "width": 160},
        {
            "image": torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)),
            "mask_image": torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(1)),
        },
        {"image": noise((200, 150)), "mask_image": hole((200, 150)), "padding_mask_crop": 16, "output_type": "pil"},
        {"latents": torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)), "height": 256, "width": 256},
        {"output_type": "latent"},
    ],
    ids=lambda arguments: ",".join(arguments) or "plain",
)
def test_inpainting_equals_diffusers(both, arguments):
    pipes = both(INPAINTS)
    pictures = [drawn(pipe, **{"image": noise(), "mask_image": hole(), **arguments}) for pipe in pipes]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("pipeline", [REDRAWS, INPAINTS])
def test_schedulers_begin_in_the_middle_as_in_diffusers(both, name, pipeline):
    pictures = []
    for pipe, library in zip(both(pipeline), (tch_diffusers, diffusers)):
        pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        masked = {"mask_image": hole()} if pipeline == INPAINTS else {}
        pictures.append(drawn(pipe, image=noise(), strength=0.6, num_inference_steps=5, **masked))
    np.testing.assert_array_equal(*pictures)


def test_a_pipeline_from_another_one_has_the_very_same_components(pipe):
    for name in (REDRAWS, INPAINTS):
        other = getattr(tch_diffusers, name).from_pipe(pipe)
        assert all(other.components[key] is part for key, part in pipe.components.items())
        assert type(other).__name__ == name and other.vae_scale_factor == pipe.vae_scale_factor
    again = tch_diffusers.StableDiffusionPipeline.from_pipe(other)
    assert again.unet is pipe.unet
    with pytest.raises(TypeError, match="takes no controlnet"):
        tch_diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe, controlnet=1)


def test_every_class_reads_the_folders_of_the_others(pipe, tmp_path):
    other = tch_diffusers.StableDiffusionInpaintPipeline.from_pipe(pipe)
    other.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == INPAINTS
    assert type(tch_diffusers.DiffusionPipeline.from_pretrained(tmp_path)).__name__ == INPAINTS
    assert type(tch_diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path)).__name__ == REDRAWS


def test_a_callback_sees_and_changes_the_mask(both):
    def callback(pipe, step, timestep, tensors):
        return {"mask": torch.ones_like(tensors["mask"]) * 0.5}

    told = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["mask"]}
    pictures = [drawn(pipe, image=noise(), mask_image=hole(), **told) for pipe in both(INPAINTS)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    ("pipeline", "arguments", "text"),
    [
        (REDRAWS, {"strength": 1.5}, "between 0 and 1"),
        (REDRAWS, {"strength": 0.1}, "leaves none of 4 steps"),
        (REDRAWS, {"image": noise(mode="RGBA")}, "pictures of 4 channels"),
        (REDRAWS, {"image": None}, "is made of PIL images"),
        (REDRAWS, {"image": []}, "empty list"),
        (REDRAWS, {"image": [noise(), noise()]}, "cannot serve 1"),
        (INPAINTS, {"strength": -1.0}, "between 0 and 1"),
        (INPAINTS, {"height": 100}, "divisible by 8"),
        (INPAINTS, {"mask_image": [hole(), hole()]}, "cannot serve 1"),
        (INPAINTS, {"padding_mask_crop": 4}, "needs the `output_type` pil"),
        (INPAINTS, {"padding_mask_crop": 4, "output_type": "pil", "mask_image": Image.new("L", (128, 128))}, "black all over"),
        (INPAINTS, {"padding_mask_crop": 4, "output_type": "pil", "mask_image": hole((64, 64))}, "of the picture's size"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipe, pipeline, arguments, text):
    pipe = getattr(tch_diffusers, pipeline).from_pipe(pipe)
    given = {"image": noise(), **({"mask_image": hole()} if pipeline == INPAINTS else {}), **arguments}
    with pytest.raises(ValueError, match=text):
        drawn(pipe, **given)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("size", [(70, 50), (33, 90), (64, 64)])
def test_pictures_are_resized_as_in_diffusers(mode, resize_mode, size):
    picture = noise(size, mode)
    for height, width in [(64, 64), (40, 96)]:
        ours = VaeImageProcessor().preprocess(picture, height, width, resize_mode, (3, 2, 30, 40))
        theirs = Theirs().preprocess(picture, height, width, resize_mode, (3, 2, 30, 40))
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


def test_masks_are_cropped_and_laid_over_as_in_diffusers():
    generator = np.random.default_rng(1)
    for _ in range(30):
        left, top = generator.integers(0, 60, 2)
        mask = hole((90, 70), (int(left), int(top), int(left + generator.integers(4, 30)), int(top + 8)))
        for width, height, pad in [(64, 64, 0), (16, 96, 20), (96, 16, 5)]:
            ours = VaeImageProcessor.get_crop_region(mask, width, height, pad)
            assert ours == Theirs.get_crop_region(mask, width, height, pad=pad)
        original, soft = noise((90, 70)), VaeImageProcessor.blur(mask)
        laid = [one.apply_overlay(soft, original, noise((64, 64)), ours) for one in (VaeImageProcessor(), Theirs())]
        assert laid[0].tobytes() == laid[1].tobytes()
