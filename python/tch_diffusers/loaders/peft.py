"""Low-rank adapters of one model by itself.

Mirrors `PeftAdapterMixin` of `diffusers/loaders/peft.py` at 0.42.1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.configuration_utils import FrozenDict
from tch_diffusers.utils.hub import HUB_ARGUMENTS, lora_file

__all__ = ["LoraConfig", "PeftAdapterMixin", "adapter_weight"]

_SIDES = ("down", "mid", "up")


class LoraConfig(FrozenDict):
    """What of PEFT's `LoraConfig` an adapter has: ranks, alphas, and the layers."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary, to be saved."""
        return dict(self)


def _side(name: str, weights: Any) -> Any:
    if not isinstance(weights, Mapping):
        return weights
    wrong = [block for block in weights if not (block.startswith("block_") and block[6:].isdigit())]
    if wrong:
        raise ValueError(f"`{name}` has no {wrong}: its blocks are called block_0, block_1 ...")
    return [(int(block[6:]), layers) for block, layers in weights.items()]


def adapter_weight(weight: Any) -> Any:
    """A weight as the extension takes it: `None` is 1, and a dictionary has all of its keys."""
    if weight is None:
        return 1.0
    if not isinstance(weight, Mapping):
        return float(weight)
    unknown = sorted(set(weight) - set(_SIDES))
    if unknown:
        raise ValueError(f"weights by block are of {list(_SIDES)}, not of {unknown}")
    return {name: _side(name, weight.get(name)) for name in _SIDES}


class PeftAdapterMixin:
    """Adapters of a model: loading, saving, weighing, fusing, and taking them away again."""

    _node: _tch_diffusers.Node

    def _known(self, adapter_names: str | Sequence[str]) -> list[str]:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        known = _tch_diffusers.list_adapters(self._node)
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"there is no adapter {missing}: loaded are {known}")
        return names

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Adds a LoRA from a safetensors file, a folder, a repository of the Hub or a state dict; it alone is active then.

        Keys begin with `prefix` and a point, as `unet`; those that do not are of other models. With `None` they name this
        model's layers. `metadata` of a state dict are the arguments of PEFT's `LoraConfig`.
        """
        if hotswap:
            raise NotImplementedError("`hotswap` is not supported: delete the adapter, and load the other one")
        if kwargs.pop("use_safetensors", None) is False:
            raise NotImplementedError("pickle files can run code and are not read: leave `use_safetensors` at True")
        if kwargs.pop("network_alphas", None):
            raise NotImplementedError("`network_alphas` are not supported: say them as `metadata`, or load by the pipeline")
        for name in ("low_cpu_mem_usage", "_pipeline"):
            kwargs.pop(name, None)
        adapter_name, metadata = kwargs.pop("adapter_name", None), kwargs.pop("metadata", None)
        weight_name, subfolder = kwargs.pop("weight_name", None), kwargs.pop("subfolder", None)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        if kwargs:
            raise TypeError(f"load_lora_adapter takes no {', '.join(kwargs)}")
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Mapping):
            tensors = [(key, tensor.detach()) for key, tensor in source.items()]
            text = None if metadata is None else json.dumps(dict(metadata), default=list)
            lora = _tch_diffusers.LoraStateDict.of_model(tensors, prefix, text)
        elif metadata is not None:
            raise NotImplementedError("`metadata` goes with a state dict: that of a file is in the file")
        else:
            lora = _tch_diffusers.LoraStateDict.read_of_model(lora_file(source, weight_name, subfolder, **hub), prefix)
        # Differs from diffusers: there, a LoRA for other models is passed over with a warning.
        if not lora.components():
            raise ValueError(f"there is nothing for this model: no key begins with `{prefix}.`" if prefix else "the LoRA is empty")
        if adapter_name is None:
            taken = _tch_diffusers.list_adapters(self._node)
            adapter_name = next(name for number in count(len(taken)) if (name := f"default_{number}") not in taken)
        _tch_diffusers.load_lora_adapter([(prefix or "", self._node)], lora, adapter_name)

    def save_lora_adapter(
        self,
        save_directory: str | os.PathLike[str],
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Writes an adapter to a file of the folder, for `load_lora_adapter` with a prefix of `None`.

        `upcast_before_saving` writes it in float32, and leaves the model as it is.
        """
        if not safe_serialization:
            raise NotImplementedError("weights are saved as safetensors, not as pickle files")
        tensors, metadata = _tch_diffusers.lora_layers(self._node, adapter_name)
        dtype = "float32" if upcast_before_saving else None
        _tch_diffusers.save_lora_weights(os.fspath(save_directory), [("", tensors, metadata)], weight_name, dtype)

    def get_adapter_state_dict(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """An adapter's factors by their keys, as PEFT's `get_peft_model_state_dict` has them. Nothing is copied."""
        return dict(_tch_diffusers.lora_layers(self._node, adapter_name)[0])

    @property
    def peft_config(self) -> dict[str, LoraConfig]:
        """The configuration of each adapter."""
        names = _tch_diffusers.list_adapters(self._node)
        return {name: LoraConfig(json.loads(_tch_diffusers.lora_layers(self._node, name)[1])) for name in names}

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        weights: float | dict[str, Any] | list[float] | list[dict[str, Any]] | list[None] | list[Any] | None = None,
    ) -> None:
        """Has these adapters, and no others, take part: each with a weight or, in a UNet, with one for each of its blocks.

        Weights by block are such as `{"down": 0.5, "mid": 0.8, "up": {"block_0": 0.3, "block_1": [0.2, 0.8, 0.4]}}`.
        """
        names = self._known(adapter_names)
        given = weights if isinstance(weights, list) else [weights] * len(names)
        _tch_diffusers.set_adapters(self._node, names, [adapter_weight(weight) for weight in given])

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Has these adapters, and no others, take part with the weights that they have."""
        _tch_diffusers.activate_adapters(self._node, self._known(adapter_name))

    def active_adapters(self) -> list[str]:
        """The adapters that take part."""
        active = _tch_diffusers.active_adapters(self._node)
        if active is None:
            raise ValueError("no adapter is loaded")
        return active

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Forgets adapters; fused ones have to be unfused first."""
        names = self._known(adapter_names)
        fused = sorted(set(names) & set(_tch_diffusers.fused_loras(self._node)))
        if fused:
            raise ValueError(f"{fused} are fused: call `unfuse_lora` first, or `unload_lora` to keep them")
        for name in names:
            _tch_diffusers.delete_adapter(self._node, name)

    def disable_lora(self) -> None:
        """Has no adapter take part; fused ones are taken out of the weights."""
        _tch_diffusers.disable_lora(self._node)

    def enable_lora(self) -> None:
        """Has the active adapters take part again."""
        _tch_diffusers.enable_lora(self._node)

    def disable_adapters(self) -> None:
        """As `disable_lora`, where there are adapters."""
        self.active_adapters()
        self.disable_lora()

    def enable_adapters(self) -> None:
        """As `enable_lora`, where there are adapters."""
        self.active_adapters()
        self.enable_lora()

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Adds adapters to the model's own weights, so that a step costs no more than without them."""
        names = None if adapter_names is None else self._known(adapter_names)
        _tch_diffusers.fuse_lora(self._node, lora_scale, safe_fusing, names)

    def unfuse_lora(self) -> None:
        """Gives the weights the numbers that they had before adapters were fused, to the bit."""
        _tch_diffusers.unfuse_lora(self._node)

    def unload_lora(self) -> None:
        """Forgets all adapters. Those that are fused stay in the weights for good, as in diffusers."""
        _tch_diffusers.unload_lora(self._node)
