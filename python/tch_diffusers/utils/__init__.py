"""Small things that models, schedulers and pipelines share.

Mirrors `diffusers.utils` and `diffusers/utils/torch_utils.py` at 0.42.1.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Union

import torch

from tch_diffusers import _tch_diffusers

__all__ = ["BaseOutput", "Generators", "bundled_model", "generators_of", "logger", "randn_tensor"]

logger = logging.getLogger("tch_diffusers")

Generators = Union[torch.Generator, "list[torch.Generator]", None]


class BaseOutput(OrderedDict):
    """What a call returns: a dataclass that is a dictionary and, by numbers, a tuple as well."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """All that is not `None`, in order."""
        return tuple(self.values())


def generators_of(generator: Generators) -> list[torch.Generator]:
    """The generators of an argument that may be one, a list, or none."""
    if generator is None:
        return []
    return list(generator) if isinstance(generator, (list, tuple)) else [generator]


def randn_tensor(
    shape: tuple[int, ...],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Normally distributed numbers on `device`, drawn where the generators live.

    One generator fills the whole batch; a list draws one item of the batch each, so that every picture can be repeated alone.
    """
    target = torch.device(device or "cpu")
    generators = generators_of(generator)
    if not generators:
        return torch.randn(shape, device=target, dtype=dtype)
    for one in generators:
        if one.device.type != target.type and one.device.type != "cpu":
            raise ValueError(f"a generator on {one.device} cannot draw for {target}: make it on the CPU")
    if len(generators) == 1:
        return torch.randn(shape, generator=generators[0], device=generators[0].device, dtype=dtype).to(target)
    item = (1, *shape[1:])
    items = [torch.randn(item, generator=one, device=one.device, dtype=dtype) for one in generators]
    return torch.cat(items).to(target)


def bundled_model() -> Path:
    """The folder of the small text-to-image model of tch-diffusers, `assets/shapes`.

    It is looked for in `TCH_DIFFUSERS_ASSETS`, and where the library was built.

    >>> bundled_model().name
    'shapes'
    """
    return _tch_diffusers.bundled_model()
