"""Techniques that hang around modules: offloading in groups, and weights stored in fewer bits.

Mirrors `diffusers/hooks/group_offloading.py` and `diffusers/hooks/layerwise_casting.py` at 0.42.1.
"""

from __future__ import annotations

from typing import Any

import torch

from tch_diffusers import _tch_diffusers

__all__ = ["apply_group_offloading", "apply_layerwise_casting", "remove_hook_from_module"]


def _node(module: Any) -> _tch_diffusers.Node:
    node = module.__dict__.get("_node") if hasattr(module, "__dict__") else None
    if not isinstance(node, _tch_diffusers.Node):
        name = f"{type(module).__module__}.{type(module).__name__}"
        raise NotImplementedError(f"hooks of tch_diffusers go around its own models, and this is a {name}")
    return node


def apply_group_offloading(
    module: torch.nn.Module,
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
    """Has weights wait on the offload device, and come to the onload device in groups, each for the time of its forward.

    With `offload_to_disk_path` they wait in the files that they were loaded from: the path itself is not written to.
    `exclude_kwargs` is taken and not needed.
    """
    options = {
        "onload_device": str(onload_device),
        "offload_device": str(offload_device),
        "offload_type": str(getattr(offload_type, "value", offload_type)),
        "num_blocks_per_group": num_blocks_per_group,
        "non_blocking": non_blocking,
        "use_stream": use_stream,
        "record_stream": record_stream,
        "low_cpu_mem_usage": low_cpu_mem_usage,
        "offload_to_disk": offload_to_disk_path is not None,
        "block_modules": block_modules,
    }
    _tch_diffusers.apply_group_offloading(_node(module), options)


def apply_layerwise_casting(
    module: torch.nn.Module,
    storage_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    skip_modules_pattern: str | tuple[str, ...] | None = "auto",
    skip_modules_classes: tuple[Any, ...] | None = None,
    non_blocking: bool = False,
) -> None:
    """Stores weights in `storage_dtype`, and casts each to `compute_dtype` while it is used.

    `skip_modules_classes` are classes or their names, such as `torch.nn.Linear` or `"Embedding"`.
    """
    if isinstance(skip_modules_pattern, str) and skip_modules_pattern != "auto":
        skip_modules_pattern = (skip_modules_pattern,)
    patterns = None if skip_modules_pattern in (None, "auto") else list(skip_modules_pattern)
    everything = skip_modules_pattern is None and skip_modules_classes is None
    if skip_modules_pattern is None:
        patterns = []
    names = [getattr(one, "__name__", str(one)) for one in skip_modules_classes or ()] or None
    node = _node(module)
    _tch_diffusers.apply_layerwise_casting(node, str(storage_dtype), str(compute_dtype), patterns, names, everything)


def remove_hook_from_module(module: torch.nn.Module, recurse: bool = False) -> torch.nn.Module:
    """Switches offloading off, as `accelerate.hooks.remove_hook_from_module` does; a pipeline has `remove_all_hooks`."""
    node = _node(module)
    _tch_diffusers.remove_group_offloading(node)
    _tch_diffusers.remove_sequential_offloading(node)
    return module
