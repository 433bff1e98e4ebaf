"""Folders, and repositories of the Hub in their place.

`huggingface_hub` downloads where it is installed, which it is beside diffusers and transformers; the library itself does
where it is not. Either brings the files that are read and no others, into one cache.

Mirrors `DiffusionPipeline.download` of `diffusers/pipelines/pipeline_utils.py` at 0.42.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tch_diffusers import _tch_diffusers

__all__ = ["HUB_ARGUMENTS", "local_folder", "lora_file", "model_folder", "pipeline_folder"]

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "proxies")

Choice = Callable[[list[str]], list[str]]


def local_folder(name: str | os.PathLike[str], subfolder: str | None = None, **hub: Any) -> Path:
    """The folder that `name` is, or that of the repository of that name, with all of `subfolder` but weights in it."""
    prefix = f"{subfolder}/" if subfolder else ""

    def choose(files: list[str]) -> list[str]:
        return [file for file in files if file.startswith(prefix) and file.endswith((".json", ".txt", ".model"))]

    return _folder(name, hub, choose, lambda access: _tch_diffusers.pipeline_folder(name, access))


def model_folder(
    name: str | os.PathLike[str],
    of_transformers: bool,
    subfolder: str | None = None,
    variant: str | None = None,
    **hub: Any,
) -> Path:
    """As `local_folder`, with a model's configuration and weights in its subfolder."""

    def choose(files: list[str]) -> list[str]:
        return _tch_diffusers.model_files(str(name), files, of_transformers, subfolder, variant)

    def own(access: Any) -> Path:
        return _tch_diffusers.model_folder(name, access, of_transformers, subfolder, variant)

    return _folder(name, hub, choose, own)


def pipeline_folder(
    name: str | os.PathLike[str], variant: str | None = None, passed: Iterable[str] = (), **hub: Any
) -> Path:
    """As `local_folder`, with a pipeline's components, but for those that are `passed` in."""

    def choose(files: list[str]) -> list[str]:
        from huggingface_hub import hf_hub_download

        index = Path(hf_hub_download(str(name), "model_index.json", **_given(hub))).read_text(encoding="utf-8")
        return _tch_diffusers.pipeline_files(str(name), files, index, variant, list(passed))

    def own(access: Any) -> Path:
        return _tch_diffusers.pipeline_folder(name, access, variant, list(passed))

    return _folder(name, hub, choose, own)


def lora_file(
    name: str | os.PathLike[str], weight_name: str | None = None, subfolder: str | None = None, **hub: Any
) -> Path:
    """The file of a LoRA: `name` itself, or the one that is meant in a folder or in a repository."""
    found: list[Path] = []

    def choose(files: list[str]) -> list[str]:
        return [_tch_diffusers.choose_lora_file(name, files, weight_name, subfolder)]

    def own(access: Any) -> Path:
        found.append(_tch_diffusers.lora_file(name, access, weight_name, subfolder))
        return found[0].parent

    if Path(name).is_file():
        return Path(name)
    folder = _folder(name, hub, choose, own)
    here: Any = {"revision": None, "token": None, "cache_dir": None, "local_files_only": True}
    return found[0] if found else _tch_diffusers.lora_file(folder, here, weight_name, subfolder)


def _given(hub: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in hub.items() if value is not None and key != "proxies"}


def _folder(
    name: str | os.PathLike[str], hub: dict[str, Any], choose: Choice, own: Callable[[Any], Path]
) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError:
        token = hub.get("token")
        access = {
            "revision": hub.get("revision"),
            "token": token if isinstance(token, str) else None,
            "cache_dir": hub.get("cache_dir"),
            "local_files_only": bool(hub.get("local_files_only")),
        }
        folder = own(access)
        if not folder.is_dir():
            raise FileNotFoundError(2, "there is no such folder", str(name)) from None
        return folder
    given = _given(hub)
    if given.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return Path(snapshot_download(str(name), **given))
    asked = {key: given[key] for key in ("revision", "token") if key in given}
    listing = HfApi().model_info(str(name), **asked)
    files = choose([file.rfilename for file in listing.siblings or []])
    return Path(snapshot_download(str(name), allow_patterns=files, **given))
