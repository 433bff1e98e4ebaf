"""The components of a checkpoint in one file.

Mirrors `diffusers/loaders/single_file.py` at 0.42.1.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.configuration_utils import from_json
from tch_diffusers.models import CLIPImageProcessor, CLIPTokenizer
from tch_diffusers.utils.hub import local_folder

__all__ = ["SingleFile"]

MODELS = ("unet", "vae", "text_encoder")


class SingleFile:
    """A file with all weights of a Stable Diffusion, and where its configurations come from."""

    def __init__(self, path: str | os.PathLike[str], config: str | os.PathLike[str] | None, hub: dict[str, Any]) -> None:
        self.path, self.hub = Path(path), hub
        self.folder: Path | None = None
        if config is None:
            self.repository, self.requires_safety_checker, known = _tch_diffusers.single_file_known(self.path)
            self.configs = {name: from_json(text) for name, text in known.items()}
            return
        self.folder = local_folder(config, **hub)
        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        self.requires_safety_checker = bool(index.get("requires_safety_checker", True))
        files = {**{name: f"{name}/config.json" for name in MODELS}, "scheduler": "scheduler/scheduler_config.json"}
        self.configs = {name: from_json((self.folder / file).read_text(encoding="utf-8")) for name, file in files.items()}

    def weights(self, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The weights of a model, cast."""
        found = {}
        for key, weight in _tch_diffusers.single_file_weights(self.path, name):
            # The authors' VAE has convolutions of one pixel in its attention.
            is_map = name == "vae" and ".attentions." in key and weight.ndim == 4
            found[key] = (weight[:, :, 0, 0] if is_map else weight).to(dtype)
        return found

    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer of the configurations' folder, or of the model's repository."""
        folder = self.folder or local_folder(self.repository, "tokenizer", **self.hub)
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")

    def feature_extractor(self) -> CLIPImageProcessor | None:
        """The feature extractor, for a safety checker that is passed in."""
        if self.folder is None:
            return CLIPImageProcessor()
        is_there = (self.folder / "feature_extractor/preprocessor_config.json").is_file()
        return CLIPImageProcessor.from_pretrained(self.folder, subfolder="feature_extractor") if is_there else None
