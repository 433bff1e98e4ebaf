"""Models alone, and their weights."""

import diffusers
import pytest
import torch

from tch_diffusers import AutoencoderKL, CLIPTextModel, CLIPTokenizer, UNet2DConditionModel


@pytest.fixture
def unet(model):
    return UNet2DConditionModel.from_pretrained(model, subfolder="unet")


@pytest.fixture
def vae(model):
    return AutoencoderKL.from_pretrained(model, subfolder="vae")


def inputs(unet, batch=2):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 4, 16, 16, generator=generator)
    return sample, 981, torch.randn(batch, 24, unet.config.cross_attention_dim, generator=generator)


@torch.no_grad()
def test_the_unet_predicts_what_diffusers_does(unet, reference):
    arguments = inputs(unet)
    expected = reference.unet(*arguments).sample
    assert torch.equal(unet(*arguments).sample, expected)
    assert torch.equal(unet(*arguments, return_dict=False)[0], expected)
    assert torch.equal(unet(arguments[0], torch.tensor([981, 981]), encoder_hidden_states=arguments[2])["sample"], expected)


def test_layers_say_how_large_they_are(unet, reference):
    ours = dict(unet.named_modules())
    compared = 0
    for path, layer in reference.unet.named_modules():
        for name in ("in_features", "out_features", "in_channels", "out_channels"):
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and hasattr(layer, name):
                assert getattr(ours[path], name) == getattr(layer, name), path
                compared += 1
    assert compared > 100 and not hasattr(unet.conv_in, "in_features")


@torch.no_grad()
def test_the_vae_encodes_and_decodes_as_diffusers(vae, reference):
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    ours, theirs = vae.encode(picture).latent_dist, reference.vae.encode(picture).latent_dist
    assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.std, theirs.std) and torch.equal(ours.var, theirs.var)
    seeded = [torch.Generator().manual_seed(5) for _ in range(2)]
    latents = ours.sample(seeded[0])
    assert torch.equal(latents, theirs.sample(seeded[1]))
    assert torch.equal(vae.decode(latents).sample, reference.vae.decode(latents).sample)
    assert torch.equal(vae(picture).sample, reference.vae(picture).sample)


@torch.no_grad()
def test_slices_and_tiles_are_diffusers(vae, reference):
    latents = torch.randn(2, 4, 24, 32)
    try:
        for one in (vae, reference.vae):
            one.enable_slicing()
            one.enable_tiling()
            one.tile_latent_min_size, one.tile_sample_min_size = 16, 128
        assert vae.use_slicing and vae.use_tiling and vae.tile_latent_min_size == 16
        assert torch.equal(vae.decode(latents).sample, reference.vae.decode(latents).sample)
    finally:
        reference.vae.disable_slicing()
        reference.vae.disable_tiling()


@torch.no_grad()
def test_the_text_encoder_is_transformers(model, reference):
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    ids = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    ours, theirs = text_encoder(ids, output_hidden_states=True), reference.text_encoder(ids, output_hidden_states=True)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert torch.equal(ours.pooler_output, theirs.pooler_output)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    assert all(map(torch.equal, ours.hidden_states, theirs.hidden_states))
    assert torch.equal(text_encoder(ids)[0], theirs[0])


def test_the_tokenizer_is_transformers(model, reference):
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    texts = ["a red circle", "a yellow star on a black background, and much more of it " * 4]
    for options in (
        {"padding": "max_length", "truncation": True, "return_tensors": "pt"},
        {"padding": "longest", "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 10, "truncation": True, "return_tensors": "pt"},
    ):
        ours, theirs = tokenizer(texts, **options), reference.tokenizer(texts, **options)
        assert torch.equal(ours.input_ids, theirs.input_ids), options
        assert torch.equal(ours.attention_mask, theirs.attention_mask), options
    assert tokenizer("a red circle").input_ids == reference.tokenizer("a red circle").input_ids
    assert tokenizer(texts).input_ids == reference.tokenizer(texts).input_ids
    assert tokenizer.model_max_length == reference.tokenizer.model_max_length
    assert tokenizer.eos_token_id == reference.tokenizer.eos_token_id
    ids = tokenizer("a red circle").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == reference.tokenizer.decode(ids, skip_special_tokens=True)


def test_weights_have_diffusers_names(unet, vae, reference):
    for ours, theirs in ((unet, reference.unet), (vae, reference.vae)):
        expected = theirs.state_dict()
        weights = ours.state_dict()
        assert set(weights) == set(expected)
        assert all(torch.equal(weights[key], weight) for key, weight in expected.items())
        assert ours.num_parameters() == theirs.num_parameters()
        assert ours.get_memory_footprint() == theirs.get_memory_footprint()
        assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
        with_weights = {name for name, module in theirs.named_modules() if list(module.parameters())}
        assert with_weights <= {name for name, _ in ours.named_modules()}
        assert sum(weight.numel() for weight in ours.parameters()) == theirs.num_parameters()
        assert ours.dtype == theirs.dtype and ours.device == theirs.device


def test_modules_are_reached_as_attributes(unet):
    assert unet.conv_out.state_dict()["weight"].stride() == unet.state_dict()["conv_out.weight"].stride()
    resnet = unet.down_blocks[0].resnets[-1]
    assert torch.equal(resnet.conv1.weight, unet.get_submodule("down_blocks.0.resnets.0.conv1").weight)
    assert len(unet.up_blocks) == len(unet.config.up_block_types)
    assert [type(block).__name__ for block in unet.up_blocks] == ["Module"] * len(unet.up_blocks)
    assert "conv_out.weight" in unet.state_dict() and "weight" in dict(unet.conv_out.named_parameters())
    with pytest.raises(AttributeError, match="no attribute 'conv_middle'"):
        unet.conv_middle


def test_weights_are_replaced_and_modules_are_not(unet):
    bias = torch.nn.Parameter(torch.ones_like(unet.conv_out.bias))
    unet.conv_out.bias = bias
    assert unet.state_dict()["conv_out.bias"].data_ptr() == bias.data_ptr()
    with pytest.raises(ValueError, match="`bias` should be"):
        unet.conv_out.bias = torch.ones(1)
    with pytest.raises(NotImplementedError, match="`conv_out` is a part of a model in Rust"):
        unet.conv_out = torch.nn.Identity()


def test_state_dicts_are_copied_or_shared(unet):
    state = {key: torch.ones_like(weight) for key, weight in unet.state_dict().items()}
    unet.load_state_dict(state)
    assert torch.all(unet.conv_in.weight == 1) and unet.conv_in.weight.data_ptr() != state["conv_in.weight"].data_ptr()
    unet.load_state_dict(state, assign=True)
    assert unet.conv_in.weight.data_ptr() == state["conv_in.weight"].data_ptr()
    with pytest.raises(KeyError, match="conv_in.weight"):
        unet.load_state_dict({})
    missing, unexpected = unet.load_state_dict({"more": torch.zeros(1)}, strict=False)
    assert len(missing) == len(state) and unexpected == ["more"]
    with pytest.raises(ValueError, match="`conv_in.bias` should be"):
        unet.load_state_dict({**state, "conv_in.bias": torch.zeros(1)})


@torch.no_grad()
def test_weights_of_diffusers_are_shared(unet, reference):
    shared = UNet2DConditionModel.from_module(reference.unet)
    assert shared.conv_in.weight.data_ptr() == reference.unet.conv_in.weight.data_ptr()
    arguments = inputs(unet)
    assert torch.equal(shared(*arguments).sample, unet(*arguments).sample)


def test_a_configuration_alone_makes_a_model(unet):
    fresh = UNet2DConditionModel.from_config(unet.config)
    assert fresh.num_parameters() == unet.num_parameters()
    assert not torch.equal(fresh.conv_in.weight, unet.conv_in.weight)


def test_configurations_are_diffusers(unet, vae, reference):
    for ours, theirs in ((unet, reference.unet), (vae, reference.vae)):
        common = {key: value for key, value in theirs.config.items() if not key.startswith("_")}
        found = {key: ours.config.get(key) for key in common}
        known = {key: value for key, value in found.items() if value is not None}
        as_list = {key: list(value) if isinstance(value, tuple) else value for key, value in common.items()}
        assert known == {key: as_list[key] for key in known}
    with pytest.raises(TypeError, match="cannot be changed"):
        unet.config["sample_size"] = 1


def test_moving_casting_and_memory_formats(unet):
    assert unet.to(torch.bfloat16) is unet and unet.dtype == torch.bfloat16
    assert unet.float().dtype == torch.float32
    before = unet.conv_out.weight.stride()
    unet.to(memory_format=torch.channels_last)
    channels = unet.config.block_out_channels[0]
    assert before == (channels * 9, 9, 3, 1)
    assert unet.conv_out.weight.stride() == (channels * 9, 1, channels * 3, channels)
    with pytest.raises(TypeError, match="floating-point"):
        unet.to(torch.int8)


def test_shapes_that_do_not_fit_are_value_errors(unet):
    sample, timestep, text = inputs(unet)
    with pytest.raises(ValueError, match="`sample` is"):
        unet(sample[0], timestep, text)
    with pytest.raises(RuntimeError, match="conv_in"):
        unet(sample[:, :3], timestep, text)
    with pytest.raises(NotImplementedError, match="cross_attention_kwargs"):
        unet(sample, timestep, text, cross_attention_kwargs={"gligen": 0.5})
    with pytest.raises(NotImplementedError, match="not trained"):
        unet.requires_grad_()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_so(pipe):
    with pytest.raises((ValueError, NotImplementedError, RuntimeError), match="(?i)cuda|nvidia"):
        pipe.to("cuda")
    assert pipe.device.type == "cpu"


def test_a_model_is_saved_so_that_diffusers_reads_it(unet, reference, tmp_path):
    unet.save_pretrained(tmp_path)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(theirs.conv_in.weight, reference.unet.conv_in.weight)
