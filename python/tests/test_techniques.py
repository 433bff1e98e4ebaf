"""Techniques that save memory or time: the picture stays the same, and they can be switched off."""

import numpy as np
import pytest
import torch
from conftest import draw

from tch_diffusers import apply_group_offloading, apply_layerwise_casting
from tch_diffusers.hooks import remove_hook_from_module


@pytest.fixture(scope="module")
def expected(reference):
    return draw(reference)


def test_offloading_changes_no_pixel(pipe, expected):
    pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.enable_sequential_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(ValueError, match="while sequential offloading is on"):
        pipe.to("cpu")
    pipe.enable_group_offload("cpu", offload_type="leaf_level", exclude_modules="vae")
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.remove_all_hooks()
    assert all(module._node.hook_names == [] for module in pipe.unet.modules())
    np.testing.assert_array_equal(draw(pipe), expected)


def test_group_offloading_of_single_models(pipe, expected):
    pipe.unet.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)
    pipe.vae.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    apply_group_offloading(pipe.text_encoder, torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path="/nowhere")
    np.testing.assert_array_equal(draw(pipe), expected)
    remove_hook_from_module(pipe.unet)
    pipe.vae.disable_group_offload()
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(ValueError, match="`num_blocks_per_group` is needed"):
        pipe.unet.enable_group_offload("cpu")
    with pytest.raises(ValueError, match="use_stream"):
        pipe.enable_group_offload("cpu", offload_type="leaf_level", use_stream=True)
    with pytest.raises(ValueError, match="no model tokenizer"):
        pipe.enable_group_offload("cpu", offload_type="leaf_level", exclude_modules=["tokenizer"])


@torch.no_grad()
def test_layerwise_casting_equals_diffusers(pipe, theirs):
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipe.unet.conv_in.weight.dtype == torch.float8_e4m3fn and pipe.unet.dtype == torch.float32
    stored = {key: weight.clone() for key, weight in pipe.unet.state_dict().items()}
    ours = draw(pipe)
    assert all(torch.equal(weight.float(), stored[key].float()) for key, weight in pipe.unet.state_dict().items())
    import copy

    theirs.unet = copy.deepcopy(theirs.unet)
    theirs.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    np.testing.assert_array_equal(ours, draw(theirs))
    pipe.unet.disable_layerwise_casting()
    assert pipe.unet.conv_in.weight.dtype == torch.float32


def test_layerwise_casting_leaves_modules_out(pipe):
    options = {"skip_modules_pattern": ("conv_in",), "skip_modules_classes": (torch.nn.Linear,)}
    apply_layerwise_casting(pipe.unet, torch.float8_e5m2, torch.float32, **options)
    assert pipe.unet.conv_in.weight.dtype == torch.float32
    assert pipe.unet.conv_out.weight.dtype == torch.float8_e5m2
    assert pipe.unet.time_embedding.linear_1.weight.dtype == torch.float32
    with pytest.raises(NotImplementedError, match="torch.nn.modules.linear.Linear"):
        apply_layerwise_casting(torch.nn.Linear(2, 2), torch.float8_e5m2, torch.float32)


def test_attention_slicing_equals_diffusers(pipe, theirs, expected):
    pipe.enable_attention_slicing()
    assert set(pipe.unet.attn_processors.values()) == {"SlicedAttnProcessor"}
    theirs.enable_attention_slicing()
    try:
        np.testing.assert_array_equal(draw(pipe), draw(theirs))
    finally:
        theirs.disable_attention_slicing()
    pipe.enable_attention_slicing(1)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    pipe.disable_attention_slicing()
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(ValueError, match="a slice has from 1 to"):
        pipe.enable_attention_slicing(1000)


def test_attention_backends_and_fused_projections(pipe, expected):
    pipe.unet.set_attention_backend("_native_math")
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    pipe.unet.reset_attention_backend()
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(NotImplementedError, match="sageattention"):
        pipe.set_attention_backend("sage")
    pipe.fuse_qkv_projections()
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)
    pipe.unfuse_qkv_projections()
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.enable_xformers_memory_efficient_attention()
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.disable_xformers_memory_efficient_attention()


def test_convolutions_in_fewer_multiplications(pipe, expected):
    pipe.enable_winograd()
    close = draw(pipe)
    np.testing.assert_allclose(close, expected, atol=1e-4)
    assert (close != expected).any()
    pipe.disable_winograd()
    np.testing.assert_array_equal(draw(pipe), expected)


def test_packed_weights_give_the_same_bits(pipe, expected):
    pipe.enable_weights_prepack()
    np.testing.assert_array_equal(draw(pipe), expected)
    np.testing.assert_array_equal(draw(pipe), expected)
    with pytest.raises(ValueError, match="disable_weights_prepack"):
        pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    pipe.disable_weights_prepack()
    np.testing.assert_array_equal(draw(pipe), expected)


def test_both_generations_of_the_vaes_switches(pipe):
    pipe.enable_vae_slicing()
    pipe.vae.enable_tiling()
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    pipe.vae.disable_slicing()
    pipe.disable_vae_tiling()
    assert not pipe.vae.use_slicing and not pipe.vae.use_tiling


def test_reset_gives_the_pipeline_back_as_it_was_loaded(pipe, expected):
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    pipe.enable_attention_slicing()
    pipe.enable_vae_slicing()
    pipe.reset()
    assert not pipe.vae.use_slicing
    np.testing.assert_array_equal(draw(pipe), expected)


def test_repeated_blocks_run_compiled(pipe, expected):
    pipe.unet.compile_repeated_blocks(fullgraph=True)
    np.testing.assert_array_equal(draw(pipe), expected)
    pipe.unet.compile_repeated_blocks(dynamic=True)
    np.testing.assert_array_equal(draw(pipe, height=64, width=96).shape, (1, 64, 96, 3))
    with pytest.raises(ValueError, match="there is no mode `fast`: there are default"):
        pipe.unet.compile_repeated_blocks(mode="fast")
    with pytest.raises(NotImplementedError, match="CUDA graph"):
        pipe.unet.compile_repeated_blocks(mode="reduce-overhead")
    with pytest.raises(NotImplementedError, match="backend='inductor'"):
        pipe.unet.compile_repeated_blocks(backend="eager")
    with pytest.raises(NotImplementedError, match="a CLIPTextModel has no repeated blocks"):
        pipe.text_encoder.compile_repeated_blocks()


def test_torch_compile_has_nothing_to_compile(pipe, expected):
    unet, decode = pipe.unet, pipe.vae.decode
    pipe.unet = torch.compile(pipe.unet, mode="max-autotune", fullgraph=True)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)
    pipe.text_encoder.compile(fullgraph=True)
    np.testing.assert_array_equal(draw(pipe), expected)
    assert pipe.unet is unet and pipe.vae.decode == decode
    # What is no code of this library is taken as it is.
    calls = []
    pipe.vae.decode = lambda *args, **kwargs: calls.append(args) or decode(*args, **kwargs)
    np.testing.assert_array_equal(draw(pipe), expected)
    assert len(calls) == 1
