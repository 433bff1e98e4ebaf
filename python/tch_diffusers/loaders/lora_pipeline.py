"""Low-rank adapters (LoRA) of Stable Diffusion's UNet and text encoder (Hu et al. 2021, arXiv:2106.09685).

Mirrors `StableDiffusionLoraLoaderMixin` and `LoraBaseMixin` of `diffusers/loaders/lora_pipeline.py` and `lora_base.py` at 0.42.1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.loaders.peft import adapter_weight
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import logger
from tch_diffusers.utils.hub import HUB_ARGUMENTS, lora_file

__all__ = ["StableDiffusionLoraLoaderMixin"]


class StableDiffusionLoraLoaderMixin:
    """Adapters for a pipeline's UNet and text encoder: loading, weighing, fusing, and taking them away again."""

    _lora_loadable_modules = ["unet", "text_encoder"]

    def _lora_models(self) -> dict[str, _tch_diffusers.Node]:
        models = {name: getattr(self, name, None) for name in self._lora_loadable_modules}
        return {name: model._node for name, model in models.items() if isinstance(model, ModelMixin)}

    def _lora_models_of(self, components: list[str] | None) -> list[_tch_diffusers.Node]:
        components = self._lora_loadable_modules if components is None else components
        unknown = [name for name in components if name not in self._lora_loadable_modules]
        if unknown or not components:
            raise ValueError(f"`components` are some of {self._lora_loadable_modules}, not {components}")
        return [node for name, node in self._lora_models().items() if name in components]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Adds a LoRA from a safetensors file, a folder, a repository of the Hub or a state dict; it alone is active then.

        `weight_name` and `subfolder` say which file. Files of PEFT's, diffusers' older and kohya's layouts are read, pickle
        files are not.
        """
        if hotswap:
            raise NotImplementedError("`hotswap` is not supported: delete the adapter, and load the other one")
        if kwargs.pop("use_safetensors", None) is False:
            raise NotImplementedError("pickle files can run code and are not read: leave `use_safetensors` at True")
        kwargs.pop("low_cpu_mem_usage", None)
        weight_name, subfolder = kwargs.pop("weight_name", None), kwargs.pop("subfolder", None)
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        if kwargs:
            raise TypeError(f"load_lora_weights takes no {', '.join(kwargs)}")
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, Mapping):
            lora = _tch_diffusers.LoraStateDict.of([(key, tensor.detach()) for key, tensor in source.items()])
        else:
            lora = _tch_diffusers.LoraStateDict.read(lora_file(source, weight_name, subfolder, **hub))
        models = self._lora_models()
        found = lora.components()
        for name in found:
            if name in self._lora_loadable_modules and name not in models:
                kind = type(getattr(self, name, None)).__name__
                raise NotImplementedError(f"a LoRA cannot be added to `{name}`: it is a {kind} of another library")
        # Differs from diffusers: there, a LoRA for neither model is passed over with a warning.
        if not set(found) & set(models):
            raise ValueError(f"{source if isinstance(source, (str, os.PathLike)) else 'state_dict'}: there is nothing for "
                             f"{' or '.join(self._lora_loadable_modules)}, but for {found}")  # fmt: skip
        if set(found) - set(models):
            logger.warning("the pipeline has no %s, whose weights are passed over", sorted(set(found) - set(models)))
        name = adapter_name if adapter_name is not None else self._default_adapter_name()
        _tch_diffusers.load_lora_adapter(list(models.items()), lora, name)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        text_encoder_lora_layers: Mapping[str, torch.Tensor] | torch.nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a LoRA to a file of the folder, `pytorch_lora_weights.safetensors` unless named.

        Layers are what PEFT's `get_peft_model_state_dict` gives, or `pipe.unet.get_adapter_state_dict(name)`; the metadata are
        `pipe.unet.peft_config[name].to_dict()`.
        """
        layers = {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers}
        configs = {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata}
        save_layers(save_directory, layers, configs, weight_name, save_function, safe_serialization)

    def _adapters(self) -> set[str]:
        return {name for names in self.get_list_adapters().values() for name in names}

    def _default_adapter_name(self) -> str:
        taken = self._adapters()
        return next(name for number in count(len(taken)) if (name := f"default_{number}") not in taken)

    def _known(self, adapter_names: list[str] | str) -> list[str]:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        missing = [name for name in names if name not in self._adapters()]
        if missing:
            raise ValueError(f"there is no adapter {missing}: loaded are {sorted(self._adapters())}")
        return names

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The adapters of each component that has some, in the order of their loading."""
        adapters = {name: _tch_diffusers.list_adapters(node) for name, node in self._lora_models().items()}
        return {name: names for name, names in adapters.items() if names}

    def get_active_adapters(self) -> list[str]:
        """The adapters that take part."""
        active: list[str] = []
        for node in self._lora_models().values():
            own = _tch_diffusers.active_adapters(node)
            active = active if own is None else own
        return active

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict[str, Any] | list[float] | list[dict[str, Any]] | list[Any] | None = None,
    ) -> None:
        """Has these adapters, and no others, take part: each with a weight, or with one for each component.

        That of the UNet may be by blocks: `{"unet": {"down": 0.5, "up": {"block_1": [0.2, 0.8, 0.4]}}, "text_encoder": 0.3}`.
        """
        names = self._known(adapter_names)
        # Differs from diffusers: there, one dictionary for several adapters counts for the first of them alone.
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"{len(weights)} weights were given for {len(names)} adapters")
        unknown = sorted({name for weight in weights if isinstance(weight, Mapping) for name in weight})
        unknown = [name for name in unknown if name not in self._lora_loadable_modules]
        if unknown:
            logger.warning("`adapter_weights` of %s are passed over: adapters are of %s", unknown, self._lora_loadable_modules)
        for component, node in self._lora_models().items():
            own = [weight.get(component) if isinstance(weight, Mapping) else weight for weight in weights]
            if component != "unet" and any(isinstance(weight, Mapping) for weight in own):
                raise ValueError(f"weights by block are of the UNet; for `{component}` give a number")
            _tch_diffusers.set_adapters(node, names, [adapter_weight(weight) for weight in own])

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Forgets adapters; fused ones have to be unfused first."""
        names = self._known(adapter_names)
        fused = sorted(set(names) & self.fused_loras)
        if fused:
            raise ValueError(f"{fused} are fused: call `unfuse_lora` first, or `unload_lora_weights` to keep them")
        for node in self._lora_models().values():
            for name in names:
                _tch_diffusers.delete_adapter(node, name)

    def disable_lora(self) -> None:
        """Has no adapter take part; fused ones are taken out of the weights."""
        for node in self._lora_models().values():
            _tch_diffusers.disable_lora(node)

    def enable_lora(self) -> None:
        """Has the active adapters take part again."""
        for node in self._lora_models().values():
            _tch_diffusers.enable_lora(node)

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Adds adapters to the models' own weights, so that a step costs no more than without them."""
        names = None if adapter_names is None else self._known(adapter_names)
        for node in self._lora_models_of(components):
            _tch_diffusers.fuse_lora(node, lora_scale, safe_fusing, names)

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Gives the weights the numbers that they had before adapters were fused, to the bit."""
        for node in self._lora_models_of(components):
            _tch_diffusers.unfuse_lora(node)

    def unload_lora_weights(self) -> None:
        """Forgets all adapters. Those that are fused stay in the weights for good, as in diffusers."""
        for node in self._lora_models().values():
            _tch_diffusers.unload_lora(node)

    @property
    def fused_loras(self) -> set[str]:
        """The adapters that are fused into some model."""
        return {name for node in self._lora_models().values() for name in _tch_diffusers.fused_loras(node)}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are fused."""
        return len(self.fused_loras)


def save_layers(
    save_directory: str | os.PathLike[str],
    layers: Mapping[str, Mapping[str, torch.Tensor] | torch.nn.Module | None],
    configs: Mapping[str, Mapping[str, Any] | None],
    weight_name: str | None,
    save_function: Callable[..., Any] | None,
    safe_serialization: bool,
) -> None:
    """Writes the layers of each component, and how they were configured, to one file."""
    if not safe_serialization:
        raise NotImplementedError("weights are saved as safetensors, not as pickle files")
    if save_function is not None:
        raise NotImplementedError("`save_function` is not supported: the file is written by this library")
    parts = []
    for component, given in layers.items():
        state = given.state_dict() if isinstance(given, torch.nn.Module) else given
        if state:
            tensors = [(key, tensor.detach()) for key, tensor in state.items()]
            config = configs[component]
            parts.append((component, tensors, json.dumps(dict(config), default=list) if config else None))
    if not parts:
        names = [f"`{component}_lora_layers`" for component in layers]
        raise ValueError(f"give at least one of {', '.join(names[:-1])} and {names[-1]}")
    _tch_diffusers.save_lora_weights(os.fspath(save_directory), parts, weight_name)
