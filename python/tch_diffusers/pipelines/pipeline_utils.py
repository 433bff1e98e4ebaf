"""What all pipelines share: their components, moving and saving them, offloading, and the progress bar.

Mirrors `diffusers/pipelines/pipeline_utils.py` at 0.42.1.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.configuration_utils import ConfigMixin
from tch_diffusers.models.modeling_utils import ModelMixin, uncompiled
from tch_diffusers.utils.hub import HUB_ARGUMENTS, pipeline_folder

__all__ = ["DiffusionPipeline"]

Self = TypeVar("Self", bound="DiffusionPipeline")

# Where diffusers looks for the classes of components that are not its own models or schedulers.
_LIBRARIES = {
    "text_encoder": "transformers",
    "tokenizer": "transformers",
    "feature_extractor": "transformers",
    "safety_checker": "stable_diffusion",
}
_PIPELINES: dict[str, type[DiffusionPipeline]] = {}


def execution_device(gpu_id: int | None = None, device: torch.device | str | None = None) -> torch.device:
    """Where offloading takes models to: the device that is named, or else the accelerator, or else the CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    named = torch.device(device)
    if gpu_id is not None and named.index is not None:
        raise ValueError(f"`gpu_id` is {gpu_id} and `device` is {named}: give one of them")
    return torch.device(named.type, gpu_id) if gpu_id is not None and named.type != "cpu" else named


class DiffusionPipeline(ConfigMixin):
    """Components that make pictures together.

    >>> from tch_diffusers.utils import bundled_model
    >>> type(DiffusionPipeline.from_pretrained(bundled_model())).__name__
    'StableDiffusionPipeline'
    """

    config_name = "model_index.json"
    model_cpu_offload_seq: str = ""
    _exclude_from_cpu_offload: list[str] = []
    _component_classes: dict[str, Any] = {}
    # Components that are arguments of the constructor without a default, and may be `None` or left out of a folder.
    _optional_components: list[str] = []
    _progress_bar_config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _PIPELINES[cls.__name__] = cls

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads the pipeline that diffusers wrote to a folder. A component that is passed in is not read.

        `dtype`, or `torch_dtype` as it was called before, casts weights while loading; `variant` names files such as
        `model.fp16.safetensors`, and a component without such files is read from its plain ones.
        """
        if dtype is not None and torch_dtype is not None:
            raise ValueError("`dtype` and `torch_dtype` are one option: give one of them")
        if use_safetensors is False:
            raise NotImplementedError("pickle files can run code and are not read: leave `use_safetensors` at True")
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        folder = pipeline_folder(pretrained_model_name_or_path, variant, list(kwargs), **hub)
        index = read_index(folder)
        written = _PIPELINES.get(index.get("_class_name", ""))
        # A class that is named reads the folders of all that are made of the same components.
        pipeline = written if written is None or cls is DiffusionPipeline else cls
        if written is None or pipeline is None or pipeline._component_classes is not written._component_classes:
            raise NotImplementedError(f"{folder} holds a {index.get('_class_name')}, not a {cls.__name__}")
        kwargs.pop("low_cpu_mem_usage", None)
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in pipeline._component_classes}
        options = {name: kwargs.pop(name) for name in pipeline._options() if name in kwargs}
        if kwargs:
            raise TypeError(f"{pipeline.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        chosen = dtype if dtype is not None else torch_dtype
        components = pipeline._load(folder, index, given, chosen, variant)
        options = {**{name: index[name] for name in pipeline._options() if name in index}, **options}
        components = {**dict.fromkeys(pipeline._optional_components), **components}
        needed = inspect.signature(pipeline.__init__).parameters.items()
        missing = [name for name, one in needed if one.default is one.empty and name not in ("self", *components)]
        if missing:
            raise ValueError(f"{folder / cls.config_name} names no {', '.join(missing)}")
        loaded = pipeline(**components, **options)
        loaded.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return loaded  # type: ignore[return-value]

    @classmethod
    def from_pipe(cls: type[Self], pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """The pipeline with the components of another one: the very same, with what is switched on there.

        `kwargs` are components to take instead, and `dtype`, or `torch_dtype`, to cast the models to, there as well; without
        it they stay as they are.
        """
        given = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or given
        # Differs from diffusers: there, without a dtype, the models of both pipelines are cast to float32.
        options, own = _options_of(pipeline), cls._options()
        options.update({name: kwargs.pop(name) for name in own if name in kwargs})
        unknown = set(kwargs) - set(cls._component_classes)
        if unknown:
            raise TypeError(f"{cls.__name__}.from_pipe takes no {', '.join(sorted(unknown))}")
        components = {name: part for name, part in pipeline.components.items() if name in cls._component_classes}
        made = cls(**{**components, **kwargs}, **{name: value for name, value in options.items() if name in own})
        # For the way back, as diffusers keeps them.
        made.register_to_config(**{f"_{name}": value for name, value in options.items() if name not in own})
        for name in ("_unet_config", "_model_offload", "_progress_bar_config"):
            if name in pipeline.__dict__ and "unet" not in kwargs:
                made.__dict__[name] = pipeline.__dict__[name]
        if dtype is not None:
            made.to(dtype)
        return made

    def share(self: Self) -> Self:
        """A second pipeline over the same weights, for another thread: a pipeline draws one picture at a time.

        No weight is copied. The scheduler is a new one, configured as this one's is now. Components that are no models of this
        library, and tokenizers, are the very same objects. With offloading or layerwise casting it is refused: share first,
        and switch on in each.
        """
        components = self.components
        scheduler = components.pop("scheduler")
        parts = {name: part.share() if isinstance(part, ModelMixin) else part for name, part in components.items()}
        made: Any = type(self)
        second = made(**parts, scheduler=type(scheduler).from_config(scheduler.config), **self._own_options())
        # As it is here: one that was put in later was not brought up to date, as the constructor does with its own.
        second.scheduler = type(scheduler).from_config(scheduler.config)
        for name in ("_unet_config", "_progress_bar_config"):
            if name in self.__dict__:
                second.__dict__[name] = self.__dict__[name]
        return cast(Self, second)

    @classmethod
    def _load(
        cls,
        folder: Path,
        index: dict[str, Any],
        given: dict[str, Any],
        dtype: torch.dtype | None,
        variant: str | None,
    ) -> dict[str, Any]:
        if variant is not None and not any(folder.glob(f"*/*.{variant}*.safetensors")):
            raise ValueError(f"{folder}: no component has files of variant `{variant}`")
        components = dict(given)
        for name, classes in cls._component_classes.items():
            named = (index.get(name) or [None, None])[1]
            if name in given or named is None:
                continue
            if named not in classes:
                # A feature extractor is of no use but to a safety checker.
                if not classes or (name == "feature_extractor" and components.get("safety_checker") is None):
                    continue
                raise NotImplementedError(f"{folder}: `{name}` is a {named}; supported is {' or '.join(classes)}")
            loader = classes[named]
            if issubclass(loader, ModelMixin):
                has_variant = variant and any((folder / name).glob(f"*.{variant}*.safetensors"))
                model = loader.from_pretrained(
                    folder, subfolder=name, dtype=dtype, variant=variant if has_variant else None
                )
                components[name] = model
            else:
                components[name] = loader.from_pretrained(folder, subfolder=name)
        return components

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, uncompiled(value))

    def register_modules(self, **components: Any) -> None:
        """Takes components, by name."""
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self) -> dict[str, Any]:
        """The components, by name."""
        return {name: self.__dict__.get(name) for name in self._component_classes}

    def _modules_by_name(self) -> dict[str, Any]:
        return {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}

    def _offloaded(self) -> dict[str, ModelMixin]:
        """The models in the order of their use, all of which have to be the library's own."""
        parts = self.components
        named = [name for name in self.model_cpu_offload_seq.split("->") if parts.get(name) is not None]
        for name in named:
            if not isinstance(parts[name], ModelMixin):
                kind = type(parts[name]).__name__
                raise NotImplementedError(f"`{name}` is a {kind}: offloading moves models of tch_diffusers")
        return {name: parts[name] for name in named}

    @property
    def device(self) -> torch.device:
        """Where the models lie."""
        for part in self._modules_by_name().values():
            device = getattr(part, "device", None)
            if device is not None:
                return torch.device(device)
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the first model computes in."""
        for part in self._modules_by_name().values():
            if isinstance(getattr(part, "dtype", None), torch.dtype):
                return part.dtype  # type: ignore[no-any-return]
        return torch.float32

    @property
    def _execution_device(self) -> torch.device:
        for part in self._modules_by_name().values():
            if isinstance(part, ModelMixin):
                return part.execution_device
        return self.device

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Moves all models to a device, casts them to a dtype, or lays them out in a memory format."""
        kwargs.pop("silence_dtype_warnings", None)
        dtype = kwargs.pop("torch_dtype", None)
        device = kwargs.pop("torch_device", None)
        if device is not None:
            kwargs["device"] = device
        if dtype is not None:
            kwargs["dtype"] = dtype
        for part in self._modules_by_name().values():
            part.to(*args, **kwargs)
        return self

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the pipeline to a folder, so that diffusers reads it back.

        `max_shard_size` is how large a file of weights may be, in bytes or as in "5GB"; `variant` names the files, as `fp16`
        does `model.fp16.safetensors`.
        """
        if not safe_serialization:
            raise NotImplementedError("weights are saved as safetensors, not as pickle files")
        if kwargs.pop("push_to_hub", False):
            raise NotImplementedError("nothing is sent to the Hub: save to a folder and upload that")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": "0.42.1"}
        for name, part in self.components.items():
            if part is None or not hasattr(part, "save_pretrained"):
                if part is not None:
                    raise NotImplementedError(f"`{name}` is a {type(part).__name__}, which cannot be saved")
                index[name] = [None, None]
                continue
            of_transformers = name.startswith(("text_encoder", "tokenizer"))
            library = _LIBRARIES.get(name, "transformers" if of_transformers else "diffusers")
            index[name] = [library, type(part).__name__.removesuffix("Pil")]
            if isinstance(part, torch.nn.Module):
                sized = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
                saved: Any = part
                saved.save_pretrained(folder / name, variant=variant, **sized)
            else:
                part.save_pretrained(folder / name)
        text = json.dumps(dict(sorted({**self._own_options(), **index}.items())), indent=2)
        (folder / self.config_name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _options(cls) -> list[str]:
        """What the constructor takes beside components."""
        taken = list(inspect.signature(cls.__init__).parameters)[1:]
        return [name for name in taken if name not in cls._component_classes]

    def _own_options(self) -> dict[str, Any]:
        taken = self._options()
        return {name: value for name, value in _options_of(self).items() if name in taken}

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Has one model at a time on the device, the others on the CPU."""
        self.remove_all_hooks()
        models = [(name, model._node) for name, model in self._offloaded().items()]
        target = execution_device(gpu_id, device)
        self._model_offload = _tch_diffusers.ModelOffload(models, str(target))
        self._move_excluded(target)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Has each layer's weights on the device for the time of the layer's own work: the least memory, and the slowest."""
        self.remove_all_hooks()
        target = execution_device(gpu_id, device)
        for model in self._offloaded().values():
            model.to("cpu")
            _tch_diffusers.apply_sequential_offloading(model._node, str(target))
        self._move_excluded(target)

    def _move_excluded(self, device: torch.device) -> None:
        """What stays on the device, though other models are offloaded."""
        for name in self._exclude_from_cpu_offload:
            part = self.components.get(name)
            if isinstance(part, torch.nn.Module):
                part.to(device)

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
        exclude_modules: str | list[str] | None = None,
    ) -> None:
        """Has weights come to the onload device in groups, for all models but `exclude_modules`, which go there for good."""
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else list(exclude_modules or [])
        own = {name: self.components.get(name) for name in self._exclude_from_cpu_offload}
        models = {**self._offloaded(), **{name: part for name, part in own.items() if isinstance(part, ModelMixin)}}
        unknown = [name for name in excluded if name not in models]
        if unknown:
            raise ValueError(f"the pipeline has no model {', '.join(unknown)}: it has {', '.join(models)}")
        self.remove_all_hooks()
        try:
            for name, model in models.items():
                if name in excluded:
                    model.to(onload_device)
                    continue
                model.enable_group_offload(
                    onload_device,
                    offload_device,
                    offload_type,
                    num_blocks_per_group,
                    non_blocking,
                    use_stream,
                    record_stream,
                    low_cpu_mem_usage,
                    offload_to_disk_path,
                )
        except BaseException:
            self.remove_all_hooks()
            raise

    def maybe_free_model_hooks(self) -> None:
        """Sends the model that is on the device away, if model offloading is on. Each call ends with it."""
        offload = self.__dict__.get("_model_offload")
        if offload is not None:
            offload.free()

    def remove_all_hooks(self) -> None:
        """Switches all offloading off."""
        offload = self.__dict__.pop("_model_offload", None)
        if offload is not None:
            offload.remove()
        for part in self._modules_by_name().values():
            if isinstance(part, ModelMixin):
                _tch_diffusers.remove_group_offloading(part._node)
                _tch_diffusers.remove_sequential_offloading(part._node)

    def reset(self) -> None:
        """Switches every technique off, and gives the models back as they were loaded."""
        self.remove_all_hooks()
        for part in self._modules_by_name().values():
            if isinstance(part, ModelMixin):
                _tch_diffusers.reset(part._node)
            for switch in ("disable_slicing", "disable_tiling"):
                if hasattr(part, switch):
                    getattr(part, switch)()

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """What tqdm is told: `disable=True`, `desc="drawing"` ..."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A bar of tqdm's."""
        from tqdm.auto import tqdm

        config = self.__dict__.get("_progress_bar_config", {})
        if iterable is not None:
            return tqdm(iterable, **config)
        if total is None:
            raise ValueError("a progress bar needs `iterable` or `total`")
        return tqdm(total=total, **config)

    def __repr__(self) -> str:
        parts = (f"  {name}: {type(part).__name__}" for name, part in self.components.items() if part is not None)
        return "\n".join([f"{type(self).__name__} {{", *parts, "}"])


def _options_of(pipeline: Any) -> dict[str, Any]:
    """What a pipeline is configured with, and what the one was that its components come from."""
    config = {name.removeprefix("_"): value for name, value in getattr(pipeline, "_internal_dict", {}).items()}
    others = ("name_or_path", "class_name", "diffusers_version", *pipeline.components)
    return {name: value for name, value in config.items() if name not in others}


def read_index(folder: Path) -> dict[str, Any]:
    """What `model_index.json` says."""
    path = folder / DiffusionPipeline.config_name
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return index
