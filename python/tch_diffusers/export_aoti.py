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


class UNet(torch.nn.Module):
    """A UNet2DConditionModel whose forward takes tensors and returns one."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, *more: torch.Tensor
    ) -> torch.Tensor:
        """The prediction."""
        given = dict(zip(self.names[3:], more, strict=True))
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
        told = {**given, "added_cond_kwargs": added or None}
        prediction: torch.Tensor = self.model(sample, timestep, text, **told, return_dict=False)[0]
        return prediction


class Block(torch.nn.Module):
    """A block whose forward takes tensors alone, under these names."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the block makes of them."""
        return self.model(**dict(zip(self.names, inputs, strict=True)))  # type: ignore[no-any-return]


# What blocks are given in Rust, in its order.
ARGUMENTS = {"BasicTransformerBlock": ["hidden_states", "encoder_hidden_states"]}
# Which of their sides may change, and with what.
BLOCK_SIDES = {"hidden_states": {0: "batch", 1: "tokens"}, "encoder_hidden_states": {0: "batch"}}


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
    if class_name != "UNet2DConditionModel":
        raise SystemExit(f"{folder}: there is no package for a {class_name}")
    dtype = getattr(torch, options.dtype)
    model = diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, variant=options.variant)
    layout = torch.channels_last if options.memory_format == "channels_last" else torch.contiguous_format
    return model.to(options.device).to(memory_format=layout).eval().requires_grad_(False)  # type: ignore[no-any-return]


def noise(seed: int, shape: Sequence[int], like: Any) -> torch.Tensor:
    """Numbers that are always the same."""
    made = torch.randn(list(shape), generator=torch.Generator().manual_seed(seed))
    parameter = next(like.parameters())
    return made.to(parameter.device, parameter.dtype)


def unet_inputs(model: Any, batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Inputs as a pipeline gives them; sides in latents."""
    config = model.config
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
        numbers = 5 if (config.projection_class_embeddings_input_dim - 5 * sinusoids) == 1280 else 6
        pooled = config.projection_class_embeddings_input_dim - numbers * sinusoids
        inputs["text_embeds"] = noise(3, (batch, pooled), model)
        inputs["time_ids"] = noise(4, (batch, numbers), model).abs() * 100
    return inputs


def whole_unet(model: Any, batch: int, height: int, width: int) -> Subject:
    """The UNet as one module."""
    inputs = unet_inputs(model, batch, height, width)
    sides = {name: {0: "batch"} for name in inputs if name != "timestep"}
    sides["sample"] |= {2: "height", 3: "width"}
    return Subject("model", "UNet2DConditionModel", UNet(model, list(inputs)), inputs, sides)


def settings(module: torch.nn.Module) -> tuple[Any, ...]:
    """What decides what a module computes, but for the values of its weights."""
    plain = (bool, int, float, str, type(None))
    parts = [
        (name, type(part).__name__, tuple(sorted((k, repr(v)) for k, v in vars(part).items() if isinstance(v, plain))))
        for name, part in module.named_modules()
    ]
    return (*parts, *((name, tuple(weight.shape)) for name, weight in module.state_dict().items()))


def repeated_blocks(model: Any, inputs: dict[str, torch.Tensor]) -> list[Subject]:
    """One subject for all blocks that are made alike, of the classes that diffusers lists."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if type(module).__name__ in (model._repeated_blocks or []):
            kinds.setdefault(settings(module), []).append(path)
    if not kinds:
        raise SystemExit(f"a {type(model).__name__} has no repeated blocks")
    seen: dict[str, dict[str, Any]] = {}
    hooks = [
        modules[paths[0]].register_forward_pre_hook(watch(seen, paths[0]), with_kwargs=True) for paths in kinds.values()
    ]
    with torch.no_grad():
        UNet(model, list(inputs))(*inputs.values())
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
    names = ARGUMENTS[class_name]
    inputs = {name: given[name].contiguous() for name in names}
    sides = {name: BLOCK_SIDES[name] for name in names}
    return Subject(f"{class_name}_{index}", class_name, Block(module, names), inputs, sides, blocks=paths)


def dimensions(subject: Subject, options: argparse.Namespace, factor: int) -> dict[str, Dimension]:
    """The sides that may change."""
    if not options.dynamic:
        return {}
    latents = options.max_side // options.vae_scale_factor
    most = {
        "batch": Dimension(1, options.max_batch),
        "height": Dimension(factor, latents, factor),
        "width": Dimension(factor, latents, factor),
        "tokens": Dimension(1, latents * latents),
    }
    named = {name for sides in subject.sides.values() for name in sides.values()}
    return {name: most[name] for name in most if name in named}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def export(subject: Subject, dims: dict[str, Dimension]) -> torch.export.ExportedProgram:
    """What torch.export records."""
    symbols = {name: dimension.symbol(name) for name, dimension in dims.items()}
    shapes = [
        {side: symbols[dim] for side, dim in subject.sides.get(name, {}).items() if dim in symbols}
        for name in subject.inputs
    ]
    # What a forward takes any number of counts as one tuple.
    named = 0 if isinstance(subject.module, Block) else 3
    free: Any = [*shapes[:named], tuple(shapes[named:])] if len(shapes) > named else shapes
    inputs = tuple(subject.inputs.values())
    return torch.export.export(subject.module, inputs, dynamic_shapes=free if dims else None, strict=False)


def contract(subject: Subject, dims: dict[str, Dimension], program: torch.export.ExportedProgram) -> dict[str, Any]:
    """What the code of `subject` asks for."""
    lifted = sorted(set(program.constants) - set(program.state_dict))
    if lifted:
        raise SystemExit(f"{subject.class_name}: what it makes of constants such as {lifted[0]} cannot be left out")
    used = {spec.target for spec in program.graph_signature.input_specs if spec.target is not None}
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
    sides = subject.sides.get(name, {})
    return [sides[side] if sides.get(side) in dims else length for side, length in enumerate(tensor.shape)]


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
        for changes in ({"batch": 1}, {"batch": 3, "height": 2, "width": 3, "tokens": 5}):
            given = subject.inputs.items()
            found.append({name: resized(name, tensor, subject, dims, changes) for name, tensor in given})
    return found


def resized(
    name: str, tensor: torch.Tensor, subject: Subject, dims: dict[str, Dimension], changes: dict[str, int]
) -> torch.Tensor:
    """The input with other sides: `batch` of so many, the others of so many steps."""
    shape = list(tensor.shape)
    for side, dim in subject.sides.get(name, {}).items():
        if dim in changes and dim in dims:
            shape[side] = min(changes[dim] * dims[dim].multiple, dims[dim].max)
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
    kind = "blocks" if options.repeated_blocks else "model"
    return folder / f"{config['_class_name']}-{kind}-{digest[:16]}.pt2"


def package(folder: Path, options: argparse.Namespace, say: Output = print) -> Path:
    """Loads, records, compiles, packs and checks; where the package is."""
    from importlib.metadata import version

    from torch.export.pt2_archive._package import package_pt2

    config = json.loads((folder / "config.json").read_text())
    model = load(folder, options)
    batch, height, width, factor = example_size(config, options)
    if options.repeated_blocks:
        subjects = repeated_blocks(model, unet_inputs(model, batch, height, width))
    else:
        subjects = [whole_unet(model, batch, height, width)]
    files, made, seconds = {}, [], 0.0
    for subject in subjects:
        dims = dimensions(subject, options, factor)
        start = time.perf_counter()
        with torch.no_grad():
            program = export(subject, dims)
            terms = contract(subject, dims, program)
            files[subject.name] = compile_subject(program)
        spent = time.perf_counter() - start
        seconds += spent
        say(f"{subject.name}: compiled in {spent:.1f} s")
        made.append((subject, dims, terms))
    whole = {
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
    path = Path(options.output) if options.output else default_output(config, options, whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole["compile_seconds"] = round(seconds, 3)
    # Whoever looks for packages meanwhile finds whole ones.
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        draft = Path(unfinished, "package.pt2")
        package_pt2(str(draft), aoti_files=files, extra_files={CONTRACT: json.dumps(whole)})
        if not options.no_check:
            check(draft, made, say)
        draft.replace(path)
    return path


def example_size(config: dict[str, Any], options: argparse.Namespace) -> tuple[int, int, int, int]:
    """Batch, height and width of the example, and what the sides have to be multiples of where they may change."""
    sides = config.get("sample_size") or 64
    sides = sides if isinstance(sides, list) else [sides, sides]
    scale = options.vae_scale_factor
    asked = (options.height, options.width)
    height, width = (side // scale if side else own for side, own in zip(asked, sides, strict=True))
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if options.dynamic and (height % factor or width % factor):
        raise SystemExit(f"with --dynamic, height and width are multiples of {factor * scale} pixels")
    batch = options.batch
    if options.dynamic and batch == 1:
        # A side of 1 would be taken for one that is always 1.
        batch = 2
    return batch, height, width, factor


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tch_diffusers.export_aoti", description=about)
    parser.add_argument("model", help="a pipeline's folder, a model's own, or owner/name on the Hub")
    parser.add_argument("--component", default="unet", choices=["unet"])
    parser.add_argument("--dynamic", action="store_true", help="batch, height and width may change")
    parser.add_argument("--repeated-blocks", action="store_true", help="one piece of code for all blocks alike")
    parser.add_argument("--height", type=int, help="of the picture, in pixels [default: the model's]")
    parser.add_argument("--width", type=int, help="of the picture, in pixels [default: the model's]")
    parser.add_argument("--batch", type=int, default=2, help="items; guidance takes two for a picture [default: 2]")
    parser.add_argument("--max-batch", type=int, default=16, help="with --dynamic [default: 16]")
    parser.add_argument("--max-side", type=int, default=2048, help="with --dynamic, in pixels [default: 2048]")
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
    if options.output and not options.output.endswith(".pt2"):
        parser.error("--output ends in .pt2")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a package and prints where it is."""
    options = arguments(argv)
    folder = folder_of(options.model, options.component)
    path = package(folder, options, lambda line: print(line, file=sys.stderr, flush=True))
    print(path)


if __name__ == "__main__":
    main()
