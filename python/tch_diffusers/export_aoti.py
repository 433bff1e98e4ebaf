"""Makes AOTInductor packages of diffusers' models, for `AotiPackage`, `compile` and `compile_repeated_blocks` in Rust.

    python -m tch_diffusers.export_aoti MODEL --component unet [--dynamic] [--repeated-blocks] [--output FILE.pt2]

diffusers loads the model, `torch.export` records it and AOTInductor compiles it, which needs a C++ compiler and, for
CUDA, Triton. The package holds code and no weights, so that it serves every checkpoint of the same architecture. Beside
the code lies `extra/tch_diffusers.json`: what the code was made for, which Rust checks before libtorch is given
anything, because the code itself checks nothing. As a plain script this file needs torch and diffusers alone, and no
extension module.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
CONTRACT = "tch_diffusers.json"
# A text of Stable Diffusion has this many tokens.
TOKENS = 77
# Weights of few elements would become part of the code otherwise, and with it of every checkpoint, and so would the
# number of threads. And the code would ask for libtorch.so, which asks for CUDA's libraries, where nobody needs them.
OPTIONS = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "aot_inductor.link_libtorch": False,
    "cpp.dynamic_threads": True,
}
# What decides whether a processor runs code that another one's compiler was told to optimise for.
CPU_FLAGS = (
    "abm adx aes amx avx bmi clflushopt clwb f16c fma gfni lzcnt movbe movdir pclmul popcnt sha sse ssse vaes vpclmul "
    "xsave"
)
Output = Callable[[str], None]


@dataclass
class Dimension:
    """A side of an input that may change: from `min` to `max`, in steps of `multiple`."""

    min: int
    max: int
    multiple: int = 1

    def symbol(self, name: str) -> Any:
        """The dimension as torch.export takes it."""
        symbol = torch.export.Dim(name, min=-(-self.min // self.multiple), max=self.max // self.multiple)
        return self.multiple * symbol if self.multiple > 1 else symbol


@dataclass
class Subject:
    """A module that is compiled, with example inputs in the order in which Rust passes them."""

    name: str
    class_name: str
    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    # For each input a dimension's name at each side that may change.
    sides: dict[str, dict[int, str]]
    # The module's parameters have this before the names that their checkpoint gives them.
    prefix: str = "model."
    # Where the model has modules like this one.
    blocks: list[str] = field(default_factory=list)


class Adapter(torch.nn.Module):
    """A module whose forward takes tensors alone, which `call` passes on under these names."""

    def __init__(self, model: Any, names: Sequence[str], call: Callable[[Any, dict[str, torch.Tensor]], Any]) -> None:
        super().__init__()
        self.model, self.names, self.call = model, names, call

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the module makes of them."""
        return self.call(self.model, dict(zip(self.names, inputs, strict=True)))


def call_unet(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The prediction; SDXL's inputs come in a dictionary of their own."""
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
    prediction: torch.Tensor = model(**given, added_cond_kwargs=added or None, return_dict=False)[0]
    return prediction


def call_transformer(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The velocity."""
    velocity: torch.Tensor = model(**given, return_dict=False)[0]
    return velocity


def call_decoder(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The picture."""
    picture: torch.Tensor = model.decode(**given, return_dict=False)[0]
    return picture


def call_encoder(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the distribution of the latents is made of."""
    moments: torch.Tensor = model._encode(**given)
    return moments


def call_block(module: Any, given: dict[str, torch.Tensor]) -> Any:
    """What a block makes of them; its rotations, with a side for items and one for heads in Rust, are a pair."""
    if "input_tensor" in given:
        return module(**given, temb=None)
    rotary = tuple(given.pop(name)[0, :, 0] for name in ("rotary_cos", "rotary_sin") if name in given)
    return module(**given, image_rotary_emb=rotary) if rotary else module(**given)


# Whole models, by the names of their inputs: which of the sides may change, and with what.
UNET_SIDES = {
    "sample": {0: "batch", 2: "height", 3: "width"},
    "timestep": {},
    **{name: {0: "batch"} for name in ("encoder_hidden_states", "timestep_cond", "text_embeds", "time_ids")},
}
FLUX_SIDES = {
    "hidden_states": {0: "batch", 1: "pixels"},
    "encoder_hidden_states": {0: "batch", 1: "words"},
    **{name: {0: "batch"} for name in ("pooled_projections", "timestep", "guidance")},
    "img_ids": {0: "pixels"},
    "txt_ids": {0: "words"},
}
# The same of blocks, in the order in which Rust gives them.
FLUX_BLOCK_SIDES = {
    "encoder_hidden_states": {0: "batch", 1: "words"},
    "hidden_states": {0: "batch", 1: "pixels"},
    "temb": {0: "batch"},
    "rotary_cos": {1: "words+pixels"},
    "rotary_sin": {1: "words+pixels"},
}
BLOCK_SIDES: dict[str, dict[str, dict[int, str]]] = {
    "BasicTransformerBlock": {"hidden_states": {0: "batch", 1: "tokens"}, "encoder_hidden_states": {0: "batch"}},
    "FluxTransformerBlock": FLUX_BLOCK_SIDES,
    "FluxSingleTransformerBlock": FLUX_BLOCK_SIDES,
    "ResnetBlock2D": {"input_tensor": {0: "batch", 2: "rows", 3: "columns"}},
}
# Each component's folder, its class, and the name of the code, which says what of the model it computes.
COMPONENTS = {
    "unet": ("unet", "UNet2DConditionModel", "model"),
    "transformer": ("transformer", "FluxTransformer2DModel", "model"),
    "vae_decoder": ("vae", "AutoencoderKL", "decoder"),
    "vae_encoder": ("vae", "AutoencoderKL", "encoder"),
}


def folder_of(model: str, component: str) -> Path:
    """Where the component's configuration lies: in a pipeline's folder, in its own, or in a repository of the Hub."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=[f"{component}/*", "*.json"]))
    return folder if (folder / "config.json").is_file() else folder / component


def load(folder: Path, options: argparse.Namespace) -> torch.nn.Module:
    """The model, as diffusers loads it, its weights laid out as the code is to find them."""
    import diffusers

    config = json.loads((folder / "config.json").read_text())
    class_name = config.get("_class_name")
    if class_name != COMPONENTS[options.component][1]:
        raise SystemExit(f"{folder}: --component {options.component} is no {class_name}")
    dtype = getattr(torch, options.dtype)
    kind = getattr(diffusers, class_name)
    model = kind.from_pretrained(folder, torch_dtype=dtype, variant=options.variant)
    layout = torch.channels_last if options.memory_format == "channels_last" else torch.contiguous_format
    return model.to(options.device).to(memory_format=layout).eval().requires_grad_(False)  # type: ignore[no-any-return]


def noise(seed: int, shape: Sequence[int], like: Any) -> torch.Tensor:
    """Numbers that are always the same."""
    made = torch.randn(list(shape), generator=torch.Generator().manual_seed(seed))
    parameter = next(like.parameters())
    return made.to(parameter.device, parameter.dtype)


def unet_inputs(model: Any, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Inputs as a pipeline gives them."""
    config = model.config
    batch, height, width = example_size(config, options, 2 ** (len(config.block_out_channels) - 1))
    unsupported = [
        key
        for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        if getattr(config, key, None) is not None
    ]
    if unsupported or config.addition_embed_type not in (None, "text_time"):
        raise SystemExit(f"a UNet with {', '.join(unsupported) or 'addition_embed_type'} cannot be exported")
    width_of_text = config.cross_attention_dim
    width_of_text = width_of_text if isinstance(width_of_text, int) else width_of_text[0]
    inputs = {
        "sample": noise(0, (batch, config.in_channels, height, width), model),
        "timestep": torch.tensor(501.0, device=model.device),
        "encoder_hidden_states": noise(1, (batch, TOKENS, width_of_text), model),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = noise(2, (batch, config.time_cond_proj_dim), model)
    if config.addition_embed_type == "text_time":
        sinusoids = config.addition_time_embed_dim
        # The refiner is told five numbers, and its pooled text is as wide as its states; others are told six.
        numbers = 5 if (config.projection_class_embeddings_input_dim - 5 * sinusoids) == width_of_text else 6
        pooled = config.projection_class_embeddings_input_dim - numbers * sinusoids
        inputs["text_embeds"] = noise(3, (batch, pooled), model)
        inputs["time_ids"] = noise(4, (batch, numbers), model).abs() * 100
    return inputs


def flux_inputs(model: Any, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Inputs as a pipeline gives them: latents two by two, and the places of all tokens."""
    config = model.config
    batch, height, width = example_size(config, options, 2)
    pixels, words, axes = height // 2 * (width // 2), options.max_sequence_length, len(config.axes_dims_rope)
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    places = torch.zeros(pixels, axes)
    places[:, 1], places[:, 2] = rows.flatten(), columns.flatten()
    inputs = {
        "hidden_states": noise(0, (batch, pixels, config.in_channels), model),
        "encoder_hidden_states": noise(1, (batch, words, config.joint_attention_dim), model),
        "pooled_projections": noise(2, (batch, config.pooled_projection_dim), model),
        "timestep": torch.full([batch], 0.6, device=model.device, dtype=model.dtype),
        "img_ids": places.to(model.device, model.dtype),
        "txt_ids": torch.zeros(words, axes, device=model.device, dtype=model.dtype),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full([batch], 3.5, device=model.device)
    return inputs


def vae_inputs(model: Any, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Latents, or a picture."""
    config = model.config
    batch, height, width = example_size(config, options, 1)
    if options.component == "vae_decoder":
        return {"z": noise(0, (batch, config.latent_channels, height, width), model)}
    scale = options.vae_scale_factor
    return {"x": noise(0, (batch, config.in_channels, height * scale, width * scale), model)}


def whole(model: Any, options: argparse.Namespace) -> Subject:
    """The component as one module."""
    _, class_name, code = COMPONENTS[options.component]
    if class_name == "UNet2DConditionModel":
        inputs, sides, call = unet_inputs(model, options), UNET_SIDES, call_unet
    elif class_name == "FluxTransformer2DModel":
        inputs, sides, call = flux_inputs(model, options), FLUX_SIDES, call_transformer
    else:
        inputs = vae_inputs(model, options)
        sides = {name: {0: "batch", 2: "height", 3: "width"} for name in inputs}
        call = call_decoder if code == "decoder" else call_encoder
    return Subject(code, class_name, Adapter(model, list(inputs), call), inputs, sides)


def settings(module: torch.nn.Module) -> tuple[Any, ...]:
    """What decides what a module computes, but for the values of its weights."""
    plain = (bool, int, float, str, type(None))
    parts = [
        (name, type(part).__name__, tuple(sorted((k, repr(v)) for k, v in vars(part).items() if isinstance(v, plain))))
        for name, part in module.named_modules()
    ]
    return (*parts, *((name, tuple(weight.shape)) for name, weight in module.state_dict().items()))


def repeated_blocks(model: Any, whole: Subject) -> list[Subject]:
    """One subject for all blocks that are made alike: of diffusers' classes, and of a VAE the residual ones."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    modules = dict(model.named_modules())
    below = "" if whole.name == "model" else f"{whole.name}."
    for path, module in modules.items():
        classes = model._repeated_blocks or (["ResnetBlock2D"] if below else [])
        if type(module).__name__ in classes and path.startswith(below):
            kinds.setdefault(settings(module), []).append(path)
    if not kinds:
        raise SystemExit(f"a {type(model).__name__} has no repeated blocks")
    seen: dict[str, dict[str, Any]] = {}
    hooks = [
        modules[paths[0]].register_forward_pre_hook(watch(seen, paths[0]), with_kwargs=True) for paths in kinds.values()
    ]
    with torch.no_grad():
        whole.module(*whole.inputs.values())
    for hook in hooks:
        hook.remove()
    return [block(index, modules[paths[0]], seen[paths[0]], paths) for index, paths in enumerate(kinds.values())]


def watch(seen: dict[str, dict[str, Any]], path: str) -> Callable[..., None]:
    """A hook that keeps what the module at `path` is called with."""

    def keep(module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen[path] = inspect.signature(module.forward).bind(*positional, **named).arguments

    return keep


def block(index: int, module: torch.nn.Module, given: dict[str, Any], paths: list[str]) -> Subject:
    """A block with what it was seen to be called with."""
    class_name = type(module).__name__
    sides = BLOCK_SIDES[class_name]
    if rotary := given.get("image_rotary_emb"):
        given |= {name: part[None, :, None] for name, part in zip(("rotary_cos", "rotary_sin"), rotary, strict=True)}
    inputs = {name: given[name].contiguous() for name in sides}
    adapter = Adapter(module, list(inputs), call_block)
    return Subject(f"{class_name}_{index}", class_name, adapter, inputs, sides, blocks=paths)


def dimensions(subject: Subject, options: argparse.Namespace, config: dict[str, Any]) -> dict[str, Dimension]:
    """The sides that may change."""
    if not options.dynamic:
        return {}
    latents = options.max_side // options.vae_scale_factor
    step, most = 1, latents
    if subject.class_name == "UNet2DConditionModel":
        step = 2 ** (len(config["block_out_channels"]) - 1)
    elif subject.name == "encoder":
        step, most = options.vae_scale_factor, options.max_side
    # torch.export takes a side of one step for one that is always one.
    least = 2 * step if subject.name == "encoder" else step
    known = {
        "batch": Dimension(1, options.max_batch),
        "height": Dimension(least, most, step),
        "width": Dimension(least, most, step),
        # Of a block of a VAE: latents, or pixels, or what lies between.
        "rows": Dimension(1, options.max_side),
        "columns": Dimension(1, options.max_side),
        "tokens": Dimension(1, latents * latents),
        "pixels": Dimension(1, (latents // 2) ** 2),
        "words": Dimension(1, options.max_sequence_length),
    }
    named = {name for sides in subject.sides.values() for name in sides.values()}
    return {name: known[name] for name in known if name in named}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def export(subject: Subject, dims: dict[str, Dimension]) -> torch.export.ExportedProgram:
    """What torch.export records."""
    symbols = {name: dimension.symbol(name) for name, dimension in dims.items()}

    def sides_of(name: str) -> dict[int, Any]:
        # torch.export finds out by itself that a side is the sum of others.
        sides = subject.sides[name].items()
        return {side: torch.export.Dim.AUTO if "+" in dim else symbols[dim] for side, dim in sides}

    # What a forward takes any number of counts as one tuple.
    free = (tuple(sides_of(name) for name in subject.inputs),) if dims else None
    inputs = tuple(subject.inputs.values())
    return torch.export.export(subject.module, inputs, dynamic_shapes=free, strict=False)


def contract(subject: Subject, dims: dict[str, Dimension], program: torch.export.ExportedProgram) -> dict[str, Any]:
    """What the code of `subject` asks for."""
    lifted = sorted(set(program.constants) - set(program.state_dict))
    if lifted:
        raise SystemExit(f"{subject.class_name}: what it makes of constants such as {lifted[0]} cannot be left out")
    # Of a VAE, the other half's weights are there and asked for by nobody.
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    used = {spec.target for spec in program.graph_signature.input_specs if spec.arg.name in read}
    weights = {name: weight for name, weight in program.state_dict.items() if name in used}
    return {
        "class": subject.class_name,
        "blocks": subject.blocks,
        "inputs": [
            {
                "name": name,
                "dtype": dtype_name(tensor.dtype),
                "shape": shape_of(name, tensor, subject, dims),
            }
            for name, tensor in subject.inputs.items()
        ],
        "dimensions": {name: vars(dimension) for name, dimension in dims.items()},
        "constants": [
            {
                "name": name.removeprefix(subject.prefix),
                "fqn": name,
                "dtype": dtype_name(weight.dtype),
                "shape": list(weight.shape),
                "stride": list(weight.stride()),
            }
            for name, weight in weights.items()
        ],
    }


def shape_of(name: str, tensor: torch.Tensor, subject: Subject, dims: dict[str, Dimension]) -> list[int | str]:
    """Numbers, and the names of dimensions."""
    sides = subject.sides[name] if dims else {}
    return [sides.get(side, length) for side, length in enumerate(tensor.shape)]


def cpu_flags() -> list[str]:
    """What this processor can do beyond the least."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted(flag for flag in flags if flag.startswith(tuple(CPU_FLAGS.split())))


def capability(device: str) -> str:
    """What the code is made for: `AVX2`, or `sm_90`."""
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return torch.backends.cpu.get_cpu_capability()


def compile_subject(program: torch.export.ExportedProgram) -> list[Any]:
    """The files of the package."""
    positional, named = program.example_inputs
    files: Any = torch._inductor.aot_compile(program.module(), positional, named, options=OPTIONS)
    return files if isinstance(files, list) else [files]


def sizes_to_check(subject: Subject, dims: dict[str, Dimension]) -> list[dict[str, torch.Tensor]]:
    """The inputs that were recorded, and, where sides may change, others."""
    found = [subject.inputs]
    if dims:
        several = {"batch": 3, "height": 2, "width": 3, "rows": 5, "columns": 4, "tokens": 5, "pixels": 7, "words": 3}
        for changes in ({"batch": 1}, several):
            given = subject.inputs.items()
            found.append({name: resized(name, tensor, subject, dims, changes) for name, tensor in given})
    return found


def resized(
    name: str, tensor: torch.Tensor, subject: Subject, dims: dict[str, Dimension], changes: dict[str, int]
) -> torch.Tensor:
    """The input with other sides: `batch` of so many, the others of so many steps."""
    known = {name: (steps, dims[name]) for name, steps in changes.items() if name in dims}
    lengths = {name: min(max(steps * dim.multiple, dim.min), dim.max) for name, (steps, dim) in known.items()}
    shape = list(tensor.shape)
    for side, dim in subject.sides[name].items():
        if all(part in lengths for part in dim.split("+")):
            shape[side] = sum(lengths[part] for part in dim.split("+"))
    if shape == list(tensor.shape):
        return tensor
    made = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
    return made.to(tensor.device, tensor.dtype)


@torch.no_grad()
def check(path: Path, subjects: list[tuple[Subject, dict[str, Dimension], dict[str, Any]]], say: Output) -> None:
    """Compares what the package computes with what diffusers does, where torch can load the package."""
    import ctypes

    from torch._inductor.package.package import load_package
    from torch.utils import _pytree as pytree

    # Where the code looks for libtorch: among what the whole process sees.
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_c*.so")):
        if library.stem == "libtorch_cpu" or (library.stem == "libtorch_cuda" and torch.cuda.is_available()):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for subject, dims, terms in subjects:
        loaded = load_package(str(path), subject.name)
        weights = subject.module.state_dict()
        named = {constant["fqn"]: weights[constant["fqn"]] for constant in terms["constants"]}
        loaded.load_constants(named, check_full_update=True, user_managed=True)
        for inputs in sizes_to_check(subject, dims):
            found, expected = loaded(*inputs.values()), subject.module(*inputs.values())
            for ours, theirs in zip(*(pytree.tree_leaves(made) for made in (found, expected)), strict=True):
                difference = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
                shape = tuple(next(iter(inputs.values())).shape)
                say(f"{subject.name} {shape}: {difference:.1e} of the largest number")
                if not difference < (1e-3 if theirs.dtype == torch.float32 else 5e-2):
                    raise SystemExit(f"{subject.name}: with {shape} the package differs by {difference:.1e}")


def default_output(config: dict[str, Any], options: argparse.Namespace, terms: dict[str, Any]) -> Path:
    """A file in the cache that Rust looks through: `TCH_DIFFUSERS_CACHE`, or the user's own for programs."""
    import hashlib

    named = os.environ.get("TCH_DIFFUSERS_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = (Path(named).expanduser() if named else Path(caches) / "tch-diffusers") / "aoti"
    digest = hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()
    code = COMPONENTS[options.component][2]
    kind = "blocks" if options.repeated_blocks else code
    return folder / f"{config['_class_name']}-{kind}-{digest[:16]}.pt2"


def package(folder: Path, options: argparse.Namespace, say: Output = print) -> Path:
    """Loads, records, compiles, packs and checks; where the package is."""
    from importlib.metadata import version

    from torch.export.pt2_archive._package import package_pt2

    config = json.loads((folder / "config.json").read_text())
    model = load(folder, options)
    subjects = [whole(model, options)]
    if options.repeated_blocks:
        subjects = repeated_blocks(model, subjects[0])
    files, made, seconds = {}, [], 0.0
    for subject in subjects:
        dims = dimensions(subject, options, config)
        start = time.perf_counter()
        with torch.no_grad():
            program = export(subject, dims)
            terms = contract(subject, dims, program)
            files[subject.name] = compile_subject(program)
        spent = time.perf_counter() - start
        seconds += spent
        say(f"{subject.name}: compiled in {spent:.1f} s")
        made.append((subject, dims, terms))
    description = {
        "format": FORMAT,
        "torch": torch.__version__.split("+")[0],
        "diffusers": version("diffusers"),
        "platform": f"{platform.system().lower()}-{platform.machine()}",
        "class": config["_class_name"],
        "config": config,
        "dtype": options.dtype,
        "device": options.device.split(":")[0],
        "capability": capability(options.device),
        "cpu_flags": cpu_flags(),
        "num_threads": torch.get_num_threads(),
        "models": {subject.name: terms for subject, _, terms in made},
    }
    path = Path(options.output) if options.output else default_output(config, options, description)
    path.parent.mkdir(parents=True, exist_ok=True)
    description["compile_seconds"] = round(seconds, 3)
    # Whoever looks for packages meanwhile finds whole ones.
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        draft = Path(unfinished, "package.pt2")
        package_pt2(str(draft), aoti_files=files, extra_files={CONTRACT: json.dumps(description)})
        if not options.no_check:
            check(draft, made, say)
        draft.replace(path)
    return path


def example_size(config: Any, options: argparse.Namespace, factor: int) -> tuple[int, int, int]:
    """Batch, and height and width in latents, which have to be multiples of `factor` where they may change."""
    scale = options.vae_scale_factor
    sides = config.get("sample_size") or 64
    sides = sides if isinstance(sides, (list, tuple)) else [sides, sides]
    if "latent_channels" in config:
        # A VAE's configuration has pixels.
        sides = [side // scale for side in sides]
    asked = (options.height, options.width)
    height, width = (side // scale if side else own for side, own in zip(asked, sides, strict=True))
    if options.dynamic and (height % factor or width % factor):
        raise SystemExit(f"with --dynamic, height and width are multiples of {factor * scale} pixels")
    batch = options.batch
    if options.dynamic and batch == 1:
        # A side of 1 would be taken for one that is always 1.
        batch = 2
    return batch, height, width


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tch_diffusers.export_aoti", description=about)
    parser.add_argument("model", help="a pipeline's folder, a model's own, or owner/name on the Hub")
    parser.add_argument("--component", default="unet", choices=list(COMPONENTS))
    parser.add_argument("--dynamic", action="store_true", help="batch, height and width may change")
    parser.add_argument("--repeated-blocks", action="store_true", help="one piece of code for all blocks alike")
    parser.add_argument("--height", type=int, help="of the picture, in pixels [default: the model's]")
    parser.add_argument("--width", type=int, help="of the picture, in pixels [default: the model's]")
    parser.add_argument("--batch", type=int, default=2, help="items; guidance takes two for a picture [default: 2]")
    parser.add_argument("--max-batch", type=int, default=16, help="with --dynamic [default: 16]")
    parser.add_argument("--max-side", type=int, default=2048, help="with --dynamic, in pixels [default: 2048]")
    parser.add_argument(
        "--max-sequence-length", type=int, default=512, help="T5's tokens; with --dynamic, the most [default: 512]"
    )
    parser.add_argument("--vae-scale-factor", type=int, default=8, help="pixels to a latent [default: 8]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--variant", help="the spelling of the weights' files, such as fp16")
    parser.add_argument(
        "--memory-format",
        default="channels_last",
        choices=["channels_last", "contiguous"],
        help="how convolutions' weights are to lie; the code lays them out anew for each call if not channels_last",
    )
    parser.add_argument("--no-check", action="store_true", help="leaves out the comparison with diffusers")
    parser.add_argument("--output", help="where the .pt2 goes [default: the cache that Rust looks through]")
    options = parser.parse_args(argv)
    if options.repeated_blocks and options.component.startswith("vae") and not options.dynamic:
        parser.error("the blocks of a VAE have pictures of many sizes: give --dynamic")
    if options.output and not options.output.endswith(".pt2"):
        parser.error("--output ends in .pt2")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a package and prints where it is."""
    options = arguments(argv)
    folder = folder_of(options.model, COMPONENTS[options.component][0])
    path = package(folder, options, lambda line: print(line, file=sys.stderr, flush=True))
    print(path)


if __name__ == "__main__":
    main()
