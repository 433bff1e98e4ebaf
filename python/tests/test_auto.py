"""Pipelines and models are found by what their folder says."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

import tch_diffusers
from tch_diffusers import AutoModel, AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

GENERATED = Path(__file__).parents[2] / "tests/fixtures/generated"
SDXL, REFINER = GENERATED / "sdxl_pipeline/_models/sdxl", GENERATED / "sdxl_img2img/_models/refiner"
FLUX = GENERATED / "flux_pipeline/_models/dev"


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        ("AutoPipelineForText2Image", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"]),
        ("AutoPipelineForImage2Image", ["StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline", None]),
        ("AutoPipelineForInpainting", ["StableDiffusionInpaintPipeline", None, None]),
    ],
)
def test_each_task_has_the_pipeline_that_diffusers_has(model, auto, expected):
    ours, theirs = getattr(tch_diffusers, auto), getattr(diffusers, auto)
    for folder, name in zip((model, SDXL, FLUX), expected):
        if name is None:
            with pytest.raises(NotImplementedError, match="for which there is none of"):
                ours.from_pretrained(folder)
            continue
        assert type(ours.from_pretrained(folder)).__name__ == name
        assert type(theirs.from_pretrained(folder, torch_dtype=torch.float32)).__name__ == name


def test_the_folder_of_another_task_serves_as_well():
    refiner = AutoPipelineForImage2Image.from_pretrained(REFINER)
    assert refiner.config.requires_aesthetics_score and refiner.text_encoder is None
    assert type(AutoPipelineForText2Image.from_pretrained(REFINER)) is tch_diffusers.StableDiffusionXLPipeline
    assert type(tch_diffusers.DiffusionPipeline.from_pretrained(REFINER)) is type(refiner)
    with pytest.raises(NotImplementedError, match="not a StableDiffusionPipeline"):
        tch_diffusers.StableDiffusionPipeline.from_pretrained(SDXL)


def test_components_go_from_task_to_task(model):
    pipe = AutoPipelineForText2Image.from_pretrained(model)
    painter = AutoPipelineForInpainting.from_pipe(pipe)
    redraws = AutoPipelineForImage2Image.from_pipe(painter, requires_safety_checker=False)
    back = AutoPipelineForText2Image.from_pipe(redraws)
    assert type(back) is type(pipe) and back.unet is pipe.unet and redraws.vae is pipe.vae
    refiner = AutoPipelineForImage2Image.from_pretrained(REFINER)
    again = AutoPipelineForImage2Image.from_pipe(AutoPipelineForText2Image.from_pipe(refiner))
    assert again.config.requires_aesthetics_score and again.unet is refiner.unet


def test_arguments_go_on_to_the_pipeline(model):
    pipe = AutoPipelineForText2Image.from_pretrained(SDXL, torch_dtype=torch.bfloat16, text_encoder=None, enable_pag=False)
    assert pipe.dtype == torch.bfloat16 and pipe.text_encoder is None
    with pytest.raises(NotImplementedError, match="ControlNets"):
        AutoPipelineForText2Image.from_pretrained(model, controlnet=object())
    with pytest.raises(TypeError, match="takes no colour"):
        AutoPipelineForText2Image.from_pretrained(model, colour=1)
    with pytest.raises(OSError, match="AutoPipelineForText2Image.from_pretrained"):
        AutoPipelineForText2Image()


def test_an_unknown_pipeline_and_a_missing_folder_are_named(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KolorsPipeline"}))
    with pytest.raises(NotImplementedError, match="a KolorsPipeline, for which there is none of StableDiffusionPipeline"):
        AutoPipelineForText2Image.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(OSError, match="model_index.json"):
        AutoPipelineForText2Image.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_models_are_of_the_class_that_diffusers_finds(part, tmp_path):
    ours, theirs = AutoModel.from_pretrained(SDXL, subfolder=part), diffusers.AutoModel.from_pretrained(str(SDXL), subfolder=part)
    assert type(ours).__name__ == type(theirs).__name__
    ours.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert type(half) is type(ours) and half.dtype == torch.float16


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match="holds a CLIPTokenizer, which is none of AutoencoderKL"):
        AutoModel.from_pretrained(SDXL, subfolder="tokenizer")
    shutil.copytree(SDXL / "vae", tmp_path / "vae")
    config = tmp_path / "vae/config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderDC"))
    with pytest.raises(NotImplementedError, match="holds a AutoencoderDC"):
        AutoModel.from_pretrained(tmp_path, subfolder="vae")
    with pytest.raises(OSError, match="config.json"):
        AutoModel.from_pretrained(tmp_path, subfolder="unet")
    with pytest.raises(OSError, match="AutoModel.from_pretrained"):
        AutoModel()
