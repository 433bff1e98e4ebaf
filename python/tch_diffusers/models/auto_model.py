"""Models found by what their folder says.

Mirrors `diffusers/models/auto_model.py` at 0.42.1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tch_diffusers.models.modeling_utils import MODELS
from tch_diffusers.utils.hub import HUB_ARGUMENTS, local_folder

__all__ = ["AutoModel"]


class AutoModel:
    """Finds the class of a model.

    >>> from tch_diffusers.utils import bundled_model
    >>> type(AutoModel.from_pretrained(bundled_model(), subfolder="unet")).__name__
    'UNet2DConditionModel'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise OSError("an AutoModel is made by `AutoModel.from_pretrained(folder)`")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_or_path: str | os.PathLike[str], *, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Reads a model from a folder, or from its `subfolder`, which may be a component of a pipeline.

        Its class is that which `model_index.json` has for the component, or else that of the model's own `config.json`. Other
        arguments are those of `ModelMixin.from_pretrained`.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        folder = local_folder(pretrained_model_or_path, **hub)
        name = _class_name(folder, subfolder)
        if name not in MODELS:
            there_are = ", ".join(sorted(MODELS))
            raise NotImplementedError(f"{folder / (subfolder or '')} holds a {name}, which is none of {there_are}")
        return MODELS[name].from_pretrained(pretrained_model_or_path, subfolder=subfolder, **kwargs)


def _class_name(folder: Path, subfolder: str | None) -> Any:
    index = folder / "model_index.json"
    component = _read(index).get(subfolder) if subfolder and index.is_file() else None
    if component:
        return component[1]
    config = _read(folder / (subfolder or "") / "config.json")
    # Differs from diffusers: there, transformers finds the class of its own models by their `model_type`.
    return config.get("_class_name") or next(iter(config.get("architectures") or []), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return config
