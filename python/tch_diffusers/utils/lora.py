"""How much adapters count in a call.

Mirrors `apply_lora_scale` of `diffusers/utils/peft_utils.py` at 0.42.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tch_diffusers import _tch_diffusers

__all__ = ["lora_scale_of", "scaled"]


def lora_scale_of(cross_attention_kwargs: Mapping[str, Any] | None) -> float:
    """The scale of adapters that attention is told; it is told nothing else."""
    told = dict(cross_attention_kwargs or {})
    scale = told.pop("scale", None)
    if told:
        raise NotImplementedError(f"`cross_attention_kwargs` {sorted(told)} are not supported: `scale` alone is")
    return 1.0 if scale is None else float(scale)


@contextmanager
def scaled(scale: float) -> Iterator[None]:
    """Multiplies the weights of adapters in the forwards of this thread."""
    before = _tch_diffusers.replace_lora_scale(scale)
    try:
        yield
    finally:
        _tch_diffusers.replace_lora_scale(before)
