"""LoRAs: the same files give the same pictures as diffusers with PEFT, and leave nothing behind."""

import copy

import numpy as np
import pytest
import torch
from conftest import draw
from safetensors.torch import save_file

import tch_diffusers


@pytest.fixture(scope="module")
def lora(reference, tmp_path_factory):
    """A folder with a small random LoRA for the bundled model."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for component, endings in (("unet", ("to_q", "to_v", "conv1", "proj_in")), ("text_encoder", ("q_proj", "fc1"))):
        for name, module in getattr(reference, component).named_modules():
            if name.endswith(endings) and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                outputs, inputs, *kernel = module.weight.shape
                down = torch.randn(4, inputs, *kernel, generator=generator) / module.weight[0].numel() ** 0.5
                up = torch.randn(outputs, 4, *[1 for _ in kernel], generator=generator) * 0.1
                tensors[f"{component}.{name}.lora_A.weight"], tensors[f"{component}.{name}.lora_B.weight"] = down, up
    folder = tmp_path_factory.mktemp("lora")
    save_file(tensors, folder / "style.safetensors")
    return folder


@pytest.fixture
def adapted(theirs, lora):
    """diffusers' pipeline with the LoRA."""
    for part in ("unet", "text_encoder"):
        setattr(theirs, part, copy.deepcopy(getattr(theirs, part)))
    theirs.load_lora_weights(lora, weight_name="style.safetensors", adapter_name="style")
    return theirs


@pytest.mark.parametrize("told", [{}, {"cross_attention_kwargs": {"scale": 0.5}}])
def test_pictures_equal_those_of_diffusers(pipe, adapted, lora, told):
    plain = draw(pipe)
    pipe.load_lora_weights(lora, weight_name="style.safetensors", adapter_name="style")
    ours = draw(pipe, **told)
    assert not np.array_equal(ours, plain)
    np.testing.assert_array_equal(ours, draw(adapted, **told))
    assert pipe.get_list_adapters() == adapted.get_list_adapters()
    assert pipe.get_active_adapters() == adapted.get_active_adapters()
    pipe.set_adapters(["style"], [0.3])
    adapted.set_adapters(["style"], [0.3])
    np.testing.assert_array_equal(draw(pipe, **told), draw(adapted, **told))
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe, **told), plain)


def test_fusing_equals_diffusers_and_unfusing_leaves_nothing_behind(pipe, adapted, lora):
    before = {key: weight.clone() for key, weight in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(lora / "style.safetensors")
    pipe.fuse_lora(lora_scale=0.8)
    adapted.fuse_lora(components=["unet", "text_encoder"], lora_scale=0.8)
    np.testing.assert_array_equal(draw(pipe), draw(adapted))
    assert pipe.fused_loras == {"default_0"} and pipe.num_fused_loras == 1
    pipe.unfuse_lora()
    assert all(torch.equal(weight, before[key]) for key, weight in pipe.unet.state_dict().items())
    pipe.disable_lora()
    disabled = draw(pipe)
    pipe.enable_lora()
    assert not np.array_equal(draw(pipe), disabled)
    pipe.delete_adapters("default_0")
    np.testing.assert_array_equal(draw(pipe), disabled)


def test_a_state_dict_and_other_pipelines_will_do(pipe, lora):
    from safetensors.torch import load_file

    pipe.load_lora_weights(load_file(lora / "style.safetensors"), adapter_name="given")
    expected = draw(pipe)
    other = tch_diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.get_active_adapters() == ["given"]
    other.unload_lora_weights()
    assert not np.array_equal(draw(pipe), expected)


def test_what_does_not_fit_is_refused(pipe, lora, tmp_path):
    with pytest.raises(ValueError, match="no adapter"):
        pipe.set_adapters("other")
    with pytest.raises(NotImplementedError, match="hotswap"):
        pipe.load_lora_weights(lora, hotswap=True)
    with pytest.raises(OSError):
        pipe.load_lora_weights(lora, weight_name="none.safetensors")
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no weight of a LoRA"):
        pipe.load_lora_weights(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_lora_weights.bin").write_bytes(b"")
    with pytest.raises(NotImplementedError, match="pickle files"):
        pipe.load_lora_weights(tmp_path / "old")
    pipe.load_lora_weights(lora)
    with pytest.raises(ValueError, match="2 weights"):
        pipe.set_adapters("default_0", [1.0, 2.0])
    with pytest.raises(NotImplementedError, match="single blocks"):
        pipe.set_adapters("default_0", {"unet": {"down": 0.5}})
    with pytest.raises(ValueError, match="taken"):
        pipe.load_lora_weights(lora, adapter_name="default_0")
