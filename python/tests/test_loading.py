"""Loading and saving, both generations of the API."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import draw

from tch_diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_weights_are_cast_while_loading(model, name):
    pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True, **{name: torch.bfloat16})
    assert pipe.dtype == torch.bfloat16
    assert {weight.dtype for weight in pipe.unet.parameters()} == {torch.bfloat16}


def test_two_dtypes_are_one_too_many(model):
    with pytest.raises(ValueError, match="one option"):
        StableDiffusionPipeline.from_pretrained(model, dtype=torch.float16, torch_dtype=torch.float16)


def test_pickle_files_are_not_read(model):
    with pytest.raises(NotImplementedError, match="pickle"):
        StableDiffusionPipeline.from_pretrained(model, use_safetensors=False)


def test_a_variant_is_read_where_there_is_one(model, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(model, folder)
    with pytest.raises(ValueError, match="no component has files of variant `fp16`"):
        StableDiffusionPipeline.from_pretrained(folder, variant="fp16")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    pipe = StableDiffusionPipeline.from_pretrained(folder, variant="fp16")
    assert pipe.unet.num_parameters() > 0


def test_ready_components_are_used(model):
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    scheduler = UniPCMultistepScheduler()
    pipe = DiffusionPipeline.from_pretrained(model, unet=unet, scheduler=scheduler)
    assert pipe.unet is unet and pipe.scheduler is scheduler


def test_a_saved_pipeline_is_read_back_by_both(pipe, tmp_path):
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    for one in (again, theirs):
        one.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(draw(one), expected)


def test_a_folder_of_another_pipeline_is_named(model, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(NotImplementedError, match="KandinskyPipeline"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_components_that_an_index_lacks_are_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="model_index.json names no .*transformer"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_errors_are_pythons_own(model, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        UNet2DConditionModel.from_pretrained(tmp_path)
    assert missing.value.filename.endswith("config.json")
    shutil.copytree(model / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "layers_per_block": 5}))
    with pytest.raises(KeyError, match="missing"):
        AutoencoderKL.from_pretrained(tmp_path / "vae")
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(ValueError, match="another shape"):
        AutoencoderKL.from_pretrained(tmp_path / "vae")
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "down_block_types": ["NoBlock"]}))
    with pytest.raises((ValueError, NotImplementedError), match="config.json"):
        AutoencoderKL.from_pretrained(tmp_path / "vae")


def test_a_repository_of_the_hub_comes_from_its_cache(model, tmp_path):
    repository = tmp_path / "models--tiny--shapes"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    pipe = StableDiffusionPipeline.from_pretrained("tiny/shapes", cache_dir=tmp_path, local_files_only=True)
    assert pipe.config["_name_or_path"] == "tiny/shapes"


def test_no_room_is_torchs_own_error(pipe):
    with pytest.raises(torch.OutOfMemoryError):
        pipe.vae.decode(torch.zeros(1, 4, 1, 1).expand(1, 4, 2**20, 2**20))
