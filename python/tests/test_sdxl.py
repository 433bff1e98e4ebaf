"""Stable Diffusion XL's pipelines draw what diffusers draws, from noise, from pictures and from base to refiner."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import tch_diffusers

GENERATED = Path(__file__).parents[2] / "tests/fixtures/generated"
SDXL, REFINER = GENERATED / "sdxl_pipeline/_models/sdxl", GENERATED / "sdxl_img2img/_models/refiner"
FROM_TEXT, FROM_IMAGE = "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
PROMPT = "a red circle on the blue background"
SIZES = {"original_size": (96, 128), "crops_coords_top_left": (8, 16), "target_size": (64, 72)}
NEGATIVE = {
    "negative_original_size": (32, 24),
    "negative_crops_coords_top_left": (2, 3),
    "negative_target_size": (64, 64),
}


def model(name: str) -> Path:
    """The folder of a model with random weights."""
    folder = SDXL.with_name(name)
    return folder if folder.is_dir() else REFINER.with_name(name)


def load(library: Any, kind: str = FROM_TEXT, name: str = "sdxl", dtype: torch.dtype = torch.float32, **told: Any) -> Any:
    """The pipeline of a library."""
    pipe = getattr(library, kind).from_pretrained(model(name), torch_dtype=dtype, **told)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def reference(kind: str = FROM_TEXT, name: str = "sdxl") -> Any:
    """A pipeline of diffusers, to be left as it is."""
    return load(diffusers, kind, name)


@pytest.fixture
def ours() -> Any:
    """A pipeline of this library, from text."""
    return load(tch_diffusers)


def draw(pipe: Any, prompt: Any = PROMPT, seed: Any = 7, **arguments: Any) -> Any:
    """Pictures as an array, of few steps."""
    seeds = [seed] if isinstance(seed, int) else seed
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    options = {"num_inference_steps": 4, "output_type": "np", **arguments}
    images = pipe(prompt, generator=generators if len(seeds) > 1 else generators[0], **options).images
    return np.asarray(images.float() if isinstance(images, torch.Tensor) else images)


def picture(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers around zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def named(arguments: Any) -> str:
    """What a case is called."""
    return ",".join(arguments) or "plain"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompt_2": "a cat on the window", "negative_prompt": "green", "negative_prompt_2": "a dog"},
        {"negative_prompt": ""},
        {"prompt": [PROMPT, "dog"], "negative_prompt": "cat", "num_images_per_prompt": 2},
        {"prompt": [PROMPT, "dog"], "negative_prompt": ["cat", "ring"], "prompt_2": ["a", "b"], "seed": [1, 2]},
        SIZES,
        {**SIZES, **NEGATIVE},
        {"prompt": [PROMPT, "dog"], **SIZES, **NEGATIVE},
        {"negative_original_size": (32, 24)},
        {"guidance_scale": 0.0, "num_inference_steps": 1},
        {"guidance_rescale": 0.7},
        {"height": 64, "width": 104},
        {"clip_skip": 1},
        {"denoising_end": 0.6, "num_inference_steps": 10},
        {"denoising_end": 1.0},
        {"timesteps": [900, 500, 100]},
        {"sigmas": [14.0, 5.0, 1.0, 0.1]},
        {"latents": random(1, 4, 8, 8)},
        {"output_type": "latent"},
        {"output_type": "pt"},
    ],
    ids=named,
)
def test_pictures_equal_those_of_diffusers(ours, arguments):
    np.testing.assert_array_equal(draw(ours, **arguments), draw(reference(), **arguments))


@pytest.mark.parametrize("name", ["no_zeros", "lcm", "latents_mean", "upcast"])
def test_models_of_other_configurations_draw_as_in_diffusers(name):
    np.testing.assert_array_equal(draw(load(tch_diffusers, name=name)), draw(reference(name=name)))


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler", "DDIMScheduler"])
def test_schedulers_draw_as_in_diffusers(ours, scheduler):
    theirs = load(diffusers)
    for pipe, library in ((ours, tch_diffusers), (theirs, diffusers)):
        pipe.scheduler = getattr(library, scheduler).from_config(pipe.scheduler.config)
    for told in ({"eta": 0.5}, {"denoising_end": 0.7, "num_inference_steps": 6}):
        np.testing.assert_array_equal(draw(ours, **told), draw(theirs, **told))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_inference_steps": 10},
        {"strength": 1.0},
        {"strength": 0.6, "negative_prompt": "cat", "prompt_2": "dog", "negative_prompt_2": "green"},
        {"strength": 0.6, **SIZES, **NEGATIVE},
        {"strength": 0.6, "prompt": [PROMPT, "dog"], "image": [picture(), picture(1)], "num_images_per_prompt": 2},
        {"strength": 0.6, "prompt": [PROMPT, "dog"], "seed": [3, 4]},
        {"strength": 0.6, "image": picture(size=(75, 69))},
        {"strength": 0.6, "image": random(1, 3, 64, 64).sigmoid()},
        {"strength": 0.6, "image": random(1, 4, 8, 8)},
        {"strength": 0.6, "latents": random(1, 4, 8, 8)},
        {"strength": 0.5, "guidance_scale": 0.0, "num_inference_steps": 2},
        {"strength": 0.7, "sigmas": [14.0, 6.0, 2.5, 0.7, 0.1]},
        {"denoising_start": 0.3, "denoising_end": 0.8, "image": random(1, 4, 8, 8), "num_inference_steps": 10},
    ],
    ids=named,
)
def test_image_to_image_equals_diffusers(arguments):
    told = {"image": picture(), **arguments}
    np.testing.assert_array_equal(draw(load(tch_diffusers, FROM_IMAGE), **told), draw(reference(FROM_IMAGE), **told))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.5, **SIZES, **NEGATIVE},
        {"prompt": [PROMPT, "dog"], "prompt_2": ["cat", "red"]},
    ],
    ids=named,
)
def test_the_refiner_equals_diffusers(arguments):
    told = {"image": picture(), "strength": 0.6, **arguments}
    ours, theirs = load(tch_diffusers, FROM_IMAGE, "refiner"), load(diffusers, FROM_IMAGE, "refiner")
    np.testing.assert_array_equal(draw(ours, **told), draw(theirs, **told))


@pytest.mark.parametrize(("scheduler", "part"), [("EulerDiscreteScheduler", 0.6), ("HeunDiscreteScheduler", 0.8)])
def test_base_hands_over_to_refiner_as_in_diffusers(scheduler, part):
    pictures = []
    for library in (tch_diffusers, diffusers):
        base, refiner = load(library), load(library, FROM_IMAGE, "refiner")
        for pipe in (base, refiner):
            pipe.scheduler = getattr(library, scheduler).from_config(pipe.scheduler.config)
        told = {"num_inference_steps": 10, "generator": torch.Generator().manual_seed(5)}
        half = base(PROMPT, denoising_end=part, output_type="latent", **told).images
        whole = refiner(PROMPT, image=half, denoising_start=part, output_type="pil", **told).images[0]
        assert base.denoising_end == refiner.denoising_start == part
        assert 0 < base.num_timesteps and 0 < refiner.num_timesteps
        pictures.append((base.num_timesteps, refiner.num_timesteps, whole.tobytes()))
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("name", ["upcast", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_up_and_back_where_diffusers_does(name, dtype):
    told = {"image": picture(), "strength": 0.6}
    pipes = [load(library, FROM_IMAGE, name, dtype) for library in (tch_diffusers, diffusers)]
    ours, theirs = (draw(pipe, output_type="pt", **told) for pipe in pipes)
    np.testing.assert_array_equal(ours, theirs)
    assert pipes[0].vae.dtype == dtype


def test_the_vae_is_cast_back_after_an_error():
    pipe = load(tch_diffusers, FROM_TEXT, "upcast", torch.float16)

    def broken(*_: Any) -> Any:
        assert pipe.vae.dtype == torch.float32
        raise RuntimeError("no picture today")

    pipe.vae.__dict__["decode"] = broken
    with pytest.raises(RuntimeError, match="no picture today"):
        draw(pipe, num_inference_steps=1)
    assert pipe.vae.dtype == torch.float16


def test_embeddings_equal_those_of_diffusers_and_take_the_texts_place(ours):
    told = {"prompt": PROMPT, "prompt_2": "dog", "negative_prompt": "cat", "num_images_per_prompt": 2}
    with torch.no_grad():
        embeds, expected = (pipe.encode_prompt(**told, device="cpu") for pipe in (ours, reference()))
    assert all(torch.equal(one, other) for one, other in zip(embeds, expected))
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, embeds))
    np.testing.assert_array_equal(draw(ours, None, **given), draw(reference(), None, **given))
    bare = load(tch_diffusers, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    np.testing.assert_array_equal(draw(bare, None, **given), draw(reference(), None, **given))
    with pytest.raises(ValueError, match="there is no `text_encoder_2` and `tokenizer_2`"):
        draw(bare)


def test_the_second_text_encoder_equals_that_of_transformers(tmp_path):
    ours = tch_diffusers.CLIPTextModelWithProjection.from_pretrained(SDXL, subfolder="text_encoder_2")
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(SDXL / "text_encoder_2", dtype=torch.float32)
    ids = torch.randint(0, 49, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, other = ours(ids, output_hidden_states=True), theirs(ids, output_hidden_states=True)
    assert torch.equal(mine.text_embeds, other.text_embeds) and torch.equal(mine[0], mine.text_embeds)
    assert torch.equal(mine.last_hidden_state, other.last_hidden_state)
    pairs = list(zip(mine.hidden_states, other.hidden_states, strict=True))
    assert len(pairs) == 4 and all(torch.equal(one, state) for one, state in pairs)
    ours.save_pretrained(tmp_path)
    again = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[key], weight) for key, weight in ours.state_dict().items())
    shared = tch_diffusers.CLIPTextModelWithProjection.from_module(theirs)
    assert torch.equal(shared(ids).text_embeds, other.text_embeds)


def test_components_of_both_libraries_mix(ours):
    theirs = reference()
    expected = draw(theirs)
    for name in ("unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"):
        pipe = tch_diffusers.StableDiffusionXLPipeline(**{**ours.components, name: theirs.components[name]})
        pipe.set_progress_bar_config(disable=True)
        np.testing.assert_array_equal(draw(pipe), expected, err_msg=name)
    ours.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config)
    np.testing.assert_array_equal(draw(ours), expected)
    parts = {"unet": ours.unet, "text_encoder": ours.text_encoder, "text_encoder_2": ours.text_encoder_2}
    mixed = diffusers.StableDiffusionXLPipeline(**{**theirs.components, **parts})
    mixed.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(draw(mixed), expected)


class Traceable(torch.nn.Module):
    """A UNet that is given tensors alone."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Any, timestep: Any, text: Any, text_embeds: Any, time_ids: Any) -> Any:
        """The prediction."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)[0]


def test_a_traced_unet_by_its_file(ours, tmp_path):
    inputs = (random(2, 4, 8, 8), torch.tensor(999.0), random(2, 77, 72), random(2, 24), random(2, 6))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Traceable(reference().unet), inputs).save(str(tmp_path / "unet.pt"))
    ours.unet = tmp_path / "unet.pt"
    np.testing.assert_array_equal(draw(ours), draw(reference()))


def test_techniques_change_no_bit(ours):
    plain = draw(ours)
    ours.enable_model_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(ours), plain)
    ours.enable_sequential_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(ours), plain)
    ours.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)
    np.testing.assert_array_equal(draw(ours), plain)
    ours.remove_all_hooks()
    ours.enable_attention_slicing("max")
    ours.vae.enable_slicing()
    ours.unet.enable_layerwise_casting()
    assert (draw(ours) != plain).any()
    ours.reset()
    np.testing.assert_array_equal(draw(ours), plain)


def test_the_refiner_is_offloaded_without_its_first_text_encoder():
    refiner = load(tch_diffusers, FROM_IMAGE, "refiner")
    assert refiner.text_encoder is None and refiner.tokenizer is None
    told = {"image": picture(), "strength": 0.6}
    plain = draw(refiner, **told)
    refiner.enable_model_cpu_offload(device="cpu")
    np.testing.assert_array_equal(draw(refiner, **told), plain)


def test_a_callback_sees_and_changes_tensors(ours):
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def record(into):
        def callback(pipe, step, timestep, tensors):
            into.append({name: tensors[name].clone() for name in names})
            return {name: tensors[name] * 0.5 for name in names}

        return callback

    seen, expected = [], []
    told = {"callback_on_step_end_tensor_inputs": names, **SIZES}
    mine = draw(ours, callback_on_step_end=record(seen), **told)
    np.testing.assert_array_equal(mine, draw(reference(), callback_on_step_end=record(expected), **told))
    assert len(seen) == len(expected) == 4
    assert all(torch.equal(one[name], other[name]) for one, other in zip(seen, expected) for name in names)


def test_a_callback_interrupts(ours):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return {}

    draw(ours, callback_on_step_end=callback)
    assert steps == [0, 1]


def test_the_older_callback_is_called_as_in_diffusers(ours):
    told = {"callback_steps": 2, "num_inference_steps": 6, "denoising_end": 0.7}
    calls: list[Any] = [[], []]
    for pipe, into in zip((ours, load(diffusers)), calls):
        library = tch_diffusers if pipe is ours else diffusers
        pipe.scheduler = library.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
        draw(pipe, callback=lambda step, timestep, latents, into=into: into.append((step, float(timestep))), **told)
    assert calls[0] and calls[0] == calls[1]


def test_a_saved_pipeline_is_read_by_diffusers_with_its_options(tmp_path):
    refiner = load(tch_diffusers, FROM_IMAGE, "refiner")
    refiner.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text()) == json.loads((REFINER / "model_index.json").read_text())
    told = {"image": picture(), "strength": 0.6}
    pictures = []
    for library in (tch_diffusers, diffusers):
        again = getattr(library, FROM_IMAGE).from_pretrained(tmp_path, torch_dtype=torch.float32)
        again.set_progress_bar_config(disable=True)
        assert again.config.requires_aesthetics_score and not again.config.force_zeros_for_empty_prompt
        pictures.append(draw(again, **told))
    np.testing.assert_array_equal(*pictures)


def test_options_of_the_constructor_are_kept_on_the_way(caplog):
    refiner = load(tch_diffusers, FROM_IMAGE, "refiner", add_watermarker=True)
    assert "`add_watermarker` is passed over" in caplog.text
    from_text = tch_diffusers.StableDiffusionXLPipeline.from_pipe(refiner)
    assert from_text.unet is refiner.unet and not from_text.config.force_zeros_for_empty_prompt
    back = tch_diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(from_text)
    assert back.config.requires_aesthetics_score
    assert refiner.share().config.requires_aesthetics_score
    assert load(tch_diffusers, FROM_TEXT, "no_zeros").share().config.force_zeros_for_empty_prompt is False
    changed = load(tch_diffusers, FROM_TEXT, "no_zeros", force_zeros_for_empty_prompt=True)
    assert changed.config.force_zeros_for_empty_prompt


@pytest.fixture(scope="module")
def lora() -> dict[str, torch.Tensor]:
    """A small random LoRA of the UNet and of both text encoders."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in reference().components[component].named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "fc1")):
                outputs, inputs = module.weight.shape
                key = f"{component}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, inputs, generator=generator) / inputs**0.5
                tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.1
    return tensors


def test_loras_of_both_text_encoders_draw_as_in_diffusers(ours, lora):
    theirs, plain = load(diffusers), draw(ours)
    for pipe in (ours, theirs):
        pipe.load_lora_weights(lora, adapter_name="style")
    assert sorted(ours.get_list_adapters()) == ["text_encoder", "text_encoder_2", "unet"]
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    adapted = draw(ours)
    assert not np.array_equal(adapted, plain)
    np.testing.assert_array_equal(adapted, draw(theirs))
    weights = [{"unet": 0.3, "text_encoder_2": 0.6}]
    for pipe in (ours, theirs):
        pipe.set_adapters(["style"], weights)
    np.testing.assert_array_equal(draw(ours), draw(theirs))
    scaled = {"cross_attention_kwargs": {"scale": 0.5}}
    np.testing.assert_array_equal(draw(ours, **scaled), draw(theirs, **scaled))
    ours.fuse_lora()
    assert ours.fused_loras == {"style"}
    ours.unfuse_lora()
    ours.unload_lora_weights()
    np.testing.assert_array_equal(draw(ours), plain)


def test_saved_loras_of_both_text_encoders_are_read_by_diffusers(ours, lora, tmp_path):
    ours.load_lora_weights(lora, adapter_name="style")
    parts = ("unet", "text_encoder", "text_encoder_2")
    layers = {f"{part}_lora_layers": getattr(ours, part).get_adapter_state_dict("style") for part in parts}
    ours.save_lora_weights(tmp_path, **layers)
    theirs = load(diffusers)
    theirs.load_lora_weights(tmp_path, adapter_name="style")
    assert theirs.get_list_adapters() == ours.get_list_adapters()
    np.testing.assert_array_equal(draw(ours), draw(theirs))
    with pytest.raises(ValueError, match="and `text_encoder_2_lora_layers`"):
        ours.save_lora_weights(tmp_path)


def test_loras_of_other_spellings_are_read_or_refused_by_name(ours):
    def kohya(layer, channels):
        factors = {"lora_down": random(4, channels), "lora_up": random(channels, 4)}
        return {f"{layer}.{name}.weight": factor for name, factor in factors.items()}

    attention = "transformer_blocks_0_attn1_to_q"
    ours.load_lora_weights(
        {
            **kohya(f"lora_unet_down_blocks_1_attentions_0_{attention}", 64),
            **kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 32),
            **kohya("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 40),
        }
    )
    assert sorted(ours.get_list_adapters()) == ["text_encoder", "text_encoder_2", "unet"]
    for block in ("input_blocks_4_1", "output_blocks_0_1"):
        with pytest.raises(NotImplementedError, match="`lora_unet_input_blocks_4_1_...`"):
            ours.load_lora_weights(kohya(f"lora_unet_{block}_{attention}", 64))
    with pytest.raises(ValueError, match="of another model"):
        ours.load_lora_weights(kohya(f"lora_unet_down_blocks_7_attentions_0_{attention}", 64))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"height": 100}, ValueError, "divisible by 8"),
        ({"prompt": None}, ValueError, "either `prompt` or `prompt_embeds`"),
        ({"prompt_2": ["a", "b"]}, ValueError, "there are 2 of `prompt_2` for 1"),
        ({"prompt_2": 5}, ValueError, "a text or a list of texts"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1"),
        ({"prompt": None, "prompt_embeds": random(1, 9, 72)}, ValueError, "go with `pooled_prompt_embeds`"),
        ({"negative_prompt_embeds": random(1, 9, 72)}, ValueError, "go with `negative_pooled_prompt_embeds`"),
        ({"target_size": (1, 2, 3)}, ValueError, "7 numbers and the pooled text make 80: disable `requires_aesthetics_score`"),
        ({"clip_skip": 3}, ValueError, "a text encoder has 3 layers"),
        ({"latents": random(1, 4, 4, 4)}, ValueError, "`latents` has to be"),
        ({"denoising_end": float("nan")}, ValueError, "`denoising_end` has to be a finite number"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "no \\['noise'\\]"),
        ({"output_type": "jpg"}, ValueError, "one of pil, np, pt, latent"),
        ({"ip_adapter_image": 1}, NotImplementedError, "IP-Adapters"),
        ({"cross_attention_kwargs": {"gligen": 1}}, NotImplementedError, "cross_attention_kwargs"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else None,
)
def test_arguments_that_do_not_fit_are_refused(ours, arguments, error, text):
    with pytest.raises(error, match=text):
        draw(ours, **arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strength": 1.5}, "between 0 and 1"),
        ({"strength": 0.1}, "leaves none of 4 steps"),
        ({"num_inference_steps": 0}, "a positive number"),
        ({"image": picture().convert("RGBA")}, "pictures of 4 channels"),
        ({"image": [picture(), picture()]}, "2 of `image` cannot serve 1"),
        ({"denoising_start": 0.8, "denoising_end": 0.8}, "has to be below `denoising_end`"),
        ({"latents": random(1, 4, 4, 4)}, "`latents` has to be"),
        ({"image": None}, "not of NoneType"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else None,
)
def test_pictures_that_do_not_fit_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        draw(load(tch_diffusers, FROM_IMAGE), **{"image": picture(), **arguments})


def test_a_pipeline_that_is_told_other_numbers_says_so(ours):
    refiner = load(tch_diffusers, FROM_IMAGE, "refiner")
    refiner.register_to_config(requires_aesthetics_score=False)
    with pytest.raises(ValueError, match="enable `requires_aesthetics_score`|disable `requires_aesthetics_score`"):
        draw(refiner, image=picture(), strength=0.6)
    ours = tch_diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(ours, requires_aesthetics_score=True)
    with pytest.raises(ValueError, match="make 64"):
        draw(ours, image=picture(), strength=0.6)
