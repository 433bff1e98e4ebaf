"""LoRAs: the same files give the same pictures as diffusers with PEFT, and leave nothing behind."""

import copy

import numpy as np
import pytest
import torch
from conftest import draw
from safetensors.torch import load_file as load
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
    pipe.load_lora_weights(load(lora / "style.safetensors"), adapter_name="given")
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
    with pytest.raises(ValueError, match=r"`up.block_9` is no block with attention: those are block_"):
        pipe.set_adapters("default_0", {"unet": {"up": {"block_9": 0.5}}})
    with pytest.raises(ValueError, match="has no"):
        pipe.set_adapters("default_0", {"unet": {"up": {"first": 0.5}}})
    with pytest.raises(ValueError, match="give a number"):
        pipe.set_adapters("default_0", {"text_encoder": {"up": 0.5}})
    with pytest.raises(ValueError, match="taken"):
        pipe.load_lora_weights(lora, adapter_name="default_0")


def test_weights_by_block_are_those_of_diffusers(pipe, adapted, lora):
    pipe.load_lora_weights(lora, weight_name="style.safetensors", adapter_name="style")
    for weights in (
        {"unet": {"down": 0.2, "mid": [0.7]}, "text_encoder": 0.5},
        {"unet": {"up": {"block_0": 0.1, "block_1": [0.3]}}},
        {"unet": 0.4},
        {},
    ):
        pipe.set_adapters("style", weights)
        adapted.set_adapters("style", weights)
        np.testing.assert_array_equal(draw(pipe), draw(adapted), err_msg=str(weights))


def test_what_is_saved_is_what_diffusers_loads(pipe, theirs, lora, tmp_path):
    from peft.utils import get_peft_model_state_dict

    pipe.load_lora_weights(lora, adapter_name="style")
    saved = {}
    for part in ("unet", "text_encoder"):
        saved[f"{part}_lora_layers"] = getattr(pipe, part).get_adapter_state_dict("style")
        saved[f"{part}_lora_adapter_metadata"] = getattr(pipe, part).peft_config["style"].to_dict()
        setattr(theirs, part, copy.deepcopy(getattr(theirs, part)))
    tch_diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, **saved)
    theirs.load_lora_weights(tmp_path, adapter_name="read")
    ours = pipe.unet.get_adapter_state_dict("style")
    read = get_peft_model_state_dict(theirs.unet, adapter_name="read")
    assert sorted(ours) == sorted(read) and all(torch.equal(ours[key], read[key]) for key in ours)
    np.testing.assert_array_equal(draw(pipe), draw(theirs))
    with pytest.raises(ValueError, match="at least one"):
        tch_diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path)
    del saved["unet_lora_adapter_metadata"]
    with pytest.raises(ValueError, match="`unet` has no metadata"):
        tch_diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, **saved)


@pytest.mark.parametrize("config", [
    dict(r=4, lora_alpha=6), dict(r=2, lora_alpha=1, alpha_pattern={"conv1": 3}, rank_pattern={"conv1": 3}),
    dict(r=4, lora_alpha=3, use_rslora=True),
])  # fmt: skip
def test_alphas_and_ranks_go_through_files_both_ways(pipe, theirs, config, tmp_path):
    from peft import LoraConfig

    theirs.unet = copy.deepcopy(theirs.unet)
    torch.manual_seed(0)
    theirs.unet.add_adapter(LoraConfig(target_modules=["to_q", "conv1"], init_lora_weights=False, **config), "trained")
    theirs.unet.save_lora_adapter(tmp_path / "theirs", "trained")
    pipe.unet.load_lora_adapter(tmp_path / "theirs", prefix=None, adapter_name="read")
    expected = draw(theirs)
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.unet.save_lora_adapter(tmp_path / "ours", "read")
    theirs.unet.delete_adapters("trained")
    theirs.unet.load_lora_adapter(tmp_path / "ours", prefix=None, adapter_name="again", use_safetensors=True)
    np.testing.assert_array_equal(draw(theirs), expected)


def test_a_model_by_itself_has_adapters(pipe, adapted, lora):
    plain = draw(pipe)
    pipe.unet.load_lora_adapter(lora, prefix="unet", adapter_name="style")
    adapted.text_encoder.disable_adapters()
    np.testing.assert_array_equal(draw(pipe), draw(adapted))
    assert pipe.unet.active_adapters() == adapted.unet.active_adapters() == ["style"]
    for weights in (0.3, [0.6], {"mid": 0.1, "down": [0.7]}, None):
        pipe.unet.set_adapters("style", weights)
        adapted.unet.set_adapters("style", weights)
        np.testing.assert_array_equal(draw(pipe), draw(adapted), err_msg=str(weights))
    for model in (pipe.unet, adapted.unet):
        model.disable_lora()
    np.testing.assert_array_equal(draw(pipe), plain)
    for model in (pipe.unet, adapted.unet):
        model.enable_lora()
        model.fuse_lora(lora_scale=0.5)
    np.testing.assert_array_equal(draw(pipe), draw(adapted))
    pipe.unet.unfuse_lora()
    pipe.unet.load_lora_adapter(load(lora / "style.safetensors"), prefix="unet", adapter_name="second")
    assert pipe.unet.active_adapters() == ["second"] and sorted(pipe.unet.peft_config) == ["second", "style"]
    pipe.unet.set_adapter(["style", "second"])
    pipe.unet.delete_adapters(["style", "second"])
    np.testing.assert_array_equal(draw(pipe), plain)
    with pytest.raises(ValueError, match="no adapter"):
        pipe.unet.set_adapter("style")
    with pytest.raises(ValueError, match="no adapter"):
        pipe.unet.disable_adapters()
    with pytest.raises(ValueError, match=r"no key begins with `transformer\.`"):
        pipe.unet.load_lora_adapter(lora)
    with pytest.raises(ValueError, match="not of"):
        pipe.unet.load_lora_adapter(lora, prefix="unet")
        pipe.unet.set_adapters("default_0", {"left": 1.0})
    pipe.unet.unload_lora()
    assert pipe.unet.peft_config == {}
