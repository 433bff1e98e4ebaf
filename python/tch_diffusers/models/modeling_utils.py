"""What all models offer, and the modules that they are made of.

Mirrors `diffusers/models/modeling_utils.py` at 0.42.1. A model is a `torch.nn.Module` whose tree of modules is the Rust
library's: its weights are torch tensors that both sides see, and nothing is held twice.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, TypeVar

import torch
from torch.nn.modules.module import _IncompatibleKeys

from tch_diffusers import _tch_diffusers
from tch_diffusers.configuration_utils import ConfigMixin, FrozenDict, from_json, to_json
from tch_diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from tch_diffusers.utils.hub import HUB_ARGUMENTS, model_folder

__all__ = ["ModelMixin", "Module"]

Self = TypeVar("Self", bound="ModelMixin")

MODELS: dict[str, type[ModelMixin]] = {}
# Which side of its weight says how large a layer is, by torch's name for it.
_SIDES = {
    "Linear": {"out_features": 0, "in_features": 1},
    "Conv2d": {"out_channels": 0, "in_channels": 1},
    "Embedding": {"num_embeddings": 0, "embedding_dim": 1},
}


def uncompiled(value: Any) -> Any:
    """What `torch.compile` made `value` of, if that is a model of this library, or a method of one; else `value`.

    Native code has nothing to compile, and with `fullgraph=True` a call of it would be an error.
    """
    model = getattr(value, "_orig_mod", None)
    if isinstance(model, ModelMixin):
        return model
    method = getattr(value, "_torchdynamo_orig_callable", None)
    return method if isinstance(getattr(method, "__self__", None), ModelMixin) else value


class Module(torch.nn.Module):
    """A module of a model: its weights by name, and the modules below it.

    Containers such as `unet.down_blocks` can be indexed and walked.
    """

    _node: _tch_diffusers.Node

    def __init__(self, node: _tch_diffusers.Node) -> None:
        super().__init__()
        self.training = False
        self._attach(node)

    def _attach(self, node: _tch_diffusers.Node) -> None:
        self.__dict__["_node"] = node
        self.__dict__["_views"] = {}

    def __getattr__(self, name: str) -> Any:
        node = self.__dict__.get("_node")
        if node is not None:
            for key, weight in node.own_params():
                if key == name:
                    return weight
            child = self._child(name)
            if child is not None:
                return child
            sides = _SIDES.get(node.class_name, {})
            if name in sides:
                return self.weight.shape[sides[name]]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        node = self.__dict__.get("_node")
        if node is not None and isinstance(value, torch.Tensor):
            weights = dict(node.own_params())
            if name in weights:
                if weights[name].shape != value.shape:
                    found, expected = list(value.shape), list(weights[name].shape)
                    raise ValueError(f"`{name}` should be {expected} and is {found}")
                self._assign({name: value.detach()})
                return
        if node is not None and node.get(name) is not None:
            raise NotImplementedError(f"`{name}` is a part of a model in Rust, which cannot be replaced; its weights can")
        code = uncompiled(value)
        if code is value or code != getattr(self, name, None):
            super().__setattr__(name, code)

    def _child(self, name: str) -> Module | None:
        views: dict[str, Module] = self.__dict__["_views"]
        if name not in views:
            node = self._node.get(name)
            if node is None or not name:
                return None
            views[name] = Module(node)
        return views[name]

    def __getitem__(self, index: int | str) -> Module:
        names = [name for name, _ in self._node.children()]
        if isinstance(index, int) and not -len(names) <= index < len(names):
            raise IndexError(index)
        name = names[index] if isinstance(index, int) else index
        child = self._child(name)
        if child is None:
            raise KeyError(name)
        return child

    def __len__(self) -> int:
        return len(self._node.children())

    def __iter__(self) -> Iterator[Module]:
        return (self[name] for name, _ in self._node.children())

    def __bool__(self) -> bool:
        return True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A part of a model runs where the model runs it."""
        raise NotImplementedError(f"`{self._node.path}` runs as a part of its model only")

    def _get_name(self) -> str:
        return self._node.class_name

    def extra_repr(self) -> str:
        """The own weights, by shape."""
        return ", ".join(f"{name}={tuple(weight.shape)}" for name, weight in self._node.own_params())

    def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules directly below, by name."""
        for name, _ in self._node.children():
            child = self._child(name)
            if child is not None:
                yield name, child

    def named_modules(
        self, memo: set[torch.nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Module]]:
        """This module and all below it, by dotted name."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(prefix=f"{prefix}.{name}" if prefix else name)

    def get_submodule(self, target: str) -> torch.nn.Module:
        """The module at a dotted name below this one."""
        module: Any = self
        for name in filter(None, target.split(".")):
            module = module[name]
        return module  # type: ignore[no-any-return]

    def _named_weights(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        path = self._node.path
        start = len(path) + 1 if path else 0
        weights = self._node.params() if recurse else [(key, weight) for key, weight in self._node.own_params()]
        for key, weight in weights:
            yield prefix + (key[start:] if recurse else key), weight

    def named_parameters(  # type: ignore[override]
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights, by their keys in the checkpoint: the tensors that the model computes with."""
        return self._named_weights(prefix + "." if prefix else "", recurse)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """There are none."""
        return iter(())

    def state_dict(  # type: ignore[override]
        self, *args: Any, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, torch.Tensor]:
        """The weights, by their keys in the checkpoint. Nothing is copied."""
        weights: dict[str, torch.Tensor] = OrderedDict() if destination is None else destination
        weights.update(self._named_weights(prefix))
        return weights

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copies weights into the model's; with `assign` the tensors themselves take their place, and nothing is copied."""
        own = dict(self._named_weights())
        missing = [key for key in own if key not in state_dict]
        unexpected = [key for key in state_dict if key not in own]
        if strict and (missing or unexpected):
            raise KeyError(f"missing weights: {missing}, unexpected weights: {unexpected}")
        common = {key: state_dict[key] for key in own if key in state_dict}
        wrong = [key for key, weight in common.items() if weight.shape != own[key].shape]
        if wrong:
            shapes = [f"`{key}` should be {list(own[key].shape)} and is {list(common[key].shape)}" for key in wrong]
            raise ValueError("weights of another shape than the model's: " + ", ".join(shapes))
        if assign:
            self._assign({key: weight.detach() for key, weight in common.items()})
        else:
            with torch.no_grad():
                for key, weight in common.items():
                    own[key].copy_(weight)
        return _IncompatibleKeys(missing, unexpected)

    def _assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        prefix = self._node.path + "." if self._node.path else ""
        self._node.assign([(prefix + key, weight) for key, weight in weights.items()])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Module:
        self._assign({key: fn(weight) for key, weight in self._named_weights()})
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Moves, casts or lays out the weights, in place: `to("cuda")`, `to(torch.float16)`, `to(memory_format=...)`."""
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"weights are cast to floating-point dtypes, not to {dtype}")
        self._node.to(*(str(one) if one is not None else None for one in (device, dtype, memory_format)))
        return self

    def cuda(self, device: Any = None) -> Any:
        """To a CUDA device."""
        return self.to(torch.device("cuda", device) if isinstance(device, int) else device or "cuda")

    def cpu(self) -> Any:
        """To the CPU."""
        return self.to("cpu")

    def float(self) -> Any:
        """To float32."""
        return self.to(torch.float32)

    def half(self) -> Any:
        """To float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        """To bfloat16."""
        return self.to(torch.bfloat16)

    def double(self) -> Any:
        """To float64."""
        return self.to(torch.float64)

    def train(self, mode: bool = True) -> Any:
        """Models are for inference: there is nothing that training would switch."""
        self.training = mode
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Weights are not trained."""
        if requires_grad:
            raise NotImplementedError("weights are not trained: nothing records gradients")
        return self


class ModelMixin(Module, ConfigMixin):
    """A model: loading, saving and moving, and the techniques that walk its modules."""

    _core_class: Any = None
    _core: Any
    _group_offload_block_modules: list[str] | None = None
    _skip_layerwise_casting_patterns: list[str] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        MODELS[cls.__name__] = cls

    def __init__(self, core: Any, config: dict[str, Any]) -> None:
        self.__dict__["_core"] = core
        super().__init__(core.node())
        self.register_to_config(**{**from_json(core.config()), **config, "_class_name": type(self).__name__})

    def __getattr__(self, name: str) -> Any:
        try:
            return Module.__getattr__(self, name)
        except AttributeError:
            return ConfigMixin.__getattr__(self, name)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> Self:
        """Reads a model that diffusers or transformers wrote to a folder, or to its `subfolder`.

        `dtype`, or `torch_dtype` as it was called before, casts floating-point weights while loading; `variant` names files such
        as `diffusion_pytorch_model.fp16.safetensors`. Pickle files are not read.
        """
        if use_safetensors is False:
            raise NotImplementedError("pickle files can run code and are not read: leave `use_safetensors` at True")
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        kwargs.pop("low_cpu_mem_usage", None)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        chosen = dtype if dtype is not None else torch_dtype
        of_transformers = cls.__name__.startswith(("CLIP", "T5", "StableDiffusionSafetyChecker"))
        folder = model_folder(pretrained_model_name_or_path, of_transformers, subfolder, variant, **hub)
        loading = {
            "folder": folder,
            "subfolder": subfolder,
            "variant": variant,
            "dtype": str(chosen) if chosen is not None else None,
            "device": str(device),
        }
        core = cls._core_class.load(loading)
        config = from_json((folder / (subfolder or "") / "config.json").read_text(encoding="utf-8"))
        return cls(core, {**config, "_name_or_path": str(pretrained_model_name_or_path)})

    @classmethod
    def from_config(
        cls: type[Self], config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor] | None = None
    ) -> Self:
        """A model of a configuration, with the tensors of `state_dict` as its weights, shared and not copied; random without."""
        weights = None if state_dict is None else [(key, weight.detach()) for key, weight in state_dict.items()]
        seed = int(torch.randint(2**31, ())) if weights is None else 0
        return cls(cls._core_class.build(to_json(dict(config)), weights, seed), dict(config))

    @classmethod
    def from_module(cls: type[Self], module: torch.nn.Module) -> Self:
        """The model that computes with the weights of a diffusers or transformers model; both share them."""
        config: Any = module.config
        return cls.from_config(config if isinstance(config, dict) else config.to_dict(), module.state_dict())

    def share(self: Self) -> Self:
        """A second model over the same weights, for another thread; nothing is copied.

        What is switched on here (slicing, tiling, a choice of kernels) is switched on there too; from then on each model has
        its own. Hooks, as of offloading and layerwise casting, lend their weights to one model: with them it is refused.
        """
        return type(self)(self._core.share(), dict(self.config))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes `config.json` and the weights to a folder, so that diffusers reads them back.

        `max_shard_size` is how large a file of weights may be, in bytes or as in "5GB": 10 GB, and 50 GB for models of
        transformers, unless given. `variant` names the files, as `fp16` does `diffusion_pytorch_model.fp16.safetensors`.
        """
        if not safe_serialization:
            raise NotImplementedError("weights are saved as safetensors, not as pickle files")
        if kwargs.pop("push_to_hub", False):
            raise NotImplementedError("nothing is sent to the Hub: save to a folder and upload that")
        self._core.save(Path(save_directory), max_shard_size, variant)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that is computed in."""
        dtype: torch.dtype = getattr(torch, self._node.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return torch.device(self._node.device)

    @property
    def execution_device(self) -> torch.device:
        """Where a forward runs: where the weights lie, or where offloading takes them."""
        return torch.device(self._node.execution_device)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of elements in all weights, none of which can be trained."""
        if only_trainable:
            return 0
        skipped = set()
        if exclude_embeddings:
            embeddings = [name for name, module in self.named_modules() if module._get_name() == "Embedding"]
            skipped = {f"{name}.weight" for name in embeddings}
        return sum(weight.numel() for key, weight in self._named_weights() if key not in skipped)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """The size of all weights, in bytes."""
        return sum(weight.numel() * weight.element_size() for _, weight in self._named_weights())

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] | None = None,
        skip_modules_classes: tuple[Any, ...] | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Stores the weights of convolutions, linear maps and embeddings in `storage_dtype`, and casts each while it is used."""
        default = ("pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$")
        patterns = (*(skip_modules_pattern or default), *self._skip_layerwise_casting_patterns)
        apply_layerwise_casting(self, storage_dtype, compute_dtype or self.dtype, patterns, skip_modules_classes)

    def disable_layerwise_casting(self) -> None:
        """Stores all weights in the dtype that they are computed in again; what was rounded stays rounded."""
        _tch_diffusers.disable_layerwise_casting(self._node)

    def enable_group_offload(
        self,
        onload_device: torch.device | str,
        offload_device: torch.device | str = "cpu",
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: str | None = None,
        block_modules: list[str] | None = None,
        exclude_kwargs: list[str] | None = None,
    ) -> None:
        """Has weights wait on the offload device or in their files, and come to the onload device in groups."""
        apply_group_offloading(
            self,
            onload_device,
            offload_device,
            offload_type,
            num_blocks_per_group,
            non_blocking,
            use_stream,
            record_stream,
            low_cpu_mem_usage,
            offload_to_disk_path,
            block_modules or self._group_offload_block_modules,
            exclude_kwargs,
        )

    def disable_group_offload(self) -> None:
        """Undoes `enable_group_offload`."""
        _tch_diffusers.remove_group_offloading(self._node)

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Computes attention in slices: `"auto"` is half of the heads, `"max"` one head, `None` all heads at once."""
        if isinstance(slice_size, (list, tuple)):
            _tch_diffusers.set_attention_slice(self._node, None, list(slice_size))
        else:
            _tch_diffusers.set_attention_slice(self._node, str(slice_size) if slice_size is not None else None)

    def set_attention_backend(self, backend: str) -> None:
        """Has attention computed by a backend, such as `_native_flash`."""
        _tch_diffusers.set_attention_backend(self._node, backend)

    def reset_attention_backend(self) -> None:
        """Lets libtorch pick the backend again."""
        _tch_diffusers.set_attention_backend(self._node, "native")

    def fuse_qkv_projections(self) -> None:
        """Computes queries, keys and values as one product."""
        _tch_diffusers.set_fused_projections(self._node, True)

    def unfuse_qkv_projections(self) -> None:
        """Computes queries, keys and values one after the other again."""
        _tch_diffusers.set_fused_projections(self._node, False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Changes nothing: a forward is one call of native code, which has nothing for `torch.compile`.

        `compile_repeated_blocks` has native code recorded.
        """

    def compile_repeated_blocks(
        self,
        *,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        backend: str = "inductor",
        mode: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Has the blocks that the model repeats run compiled: each kind is recorded once for all its twins.

        The arguments are those of `torch.compile`. With `mode="max-autotune"` the blocks run a package that
        `python -m tch_diffusers.export_aoti --repeated-blocks` put into the cache.
        """
        if backend != "inductor" or options:
            raise NotImplementedError(f"only `backend='inductor'` without options is supported, not {backend!r} with {options}")
        self._core.compile_repeated_blocks(mode or "default", fullgraph, dynamic)

    def enable_winograd(self) -> None:
        """Computes convolutions on the CPU in float32 with a quarter of the multiplications; close, not equal."""
        _tch_diffusers.set_use_winograd(self._node, True)

    def disable_winograd(self) -> None:
        """Computes convolutions as libtorch does again."""
        _tch_diffusers.set_use_winograd(self._node, False)

    def enable_weights_prepack(self) -> None:
        """Keeps the weights of convolutions on the CPU in oneDNN's own layout: the same bits in less time, for a copy."""
        _tch_diffusers.set_weights_prepack(self._node, True)

    def disable_weights_prepack(self) -> None:
        """Forgets the copies again."""
        _tch_diffusers.set_weights_prepack(self._node, False)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Computes attention by libtorch's memory-efficient kernel; xFormers itself is not needed."""
        _tch_diffusers.set_use_memory_efficient_attention(self._node, True)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Lets libtorch pick the kernel again."""
        _tch_diffusers.set_use_memory_efficient_attention(self._node, False)

    @property
    def attn_processors(self) -> dict[str, str]:
        """How each attention computes, by its path: the name of diffusers' processor."""
        named = _tch_diffusers.attn_processors(self._node)
        return {f"{path}.processor": name for path, name, _ in named}

    def enable_gradient_checkpointing(self) -> None:
        """Weights are not trained."""
        raise NotImplementedError("weights are not trained: nothing records gradients")

    @property
    def _internal_dict(self) -> FrozenDict:
        return self.config

    @_internal_dict.setter
    def _internal_dict(self, config: dict[str, Any]) -> None:
        self.__dict__["_internal_dict"] = FrozenDict(config)
