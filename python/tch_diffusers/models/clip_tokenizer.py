"""CLIP's tokenizer.

Mirrors `CLIPTokenizer` of `transformers/models/clip/tokenization_clip.py` at 5.23.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.utils import BaseOutput
from tch_diffusers.utils.hub import HUB_ARGUMENTS, local_folder

__all__ = ["BatchEncoding", "CLIPTokenizer", "Tokenizer"]

Self = TypeVar("Self", bound="Tokenizer")


@dataclass(eq=False)
class BatchEncoding(BaseOutput):
    """A batch of texts as numbers, and which of them are text: tensors or lists."""

    input_ids: Any
    attention_mask: Any


class Tokenizer:
    """Text to numbers and back, by the Rust library."""

    _core_class: Any = None
    _core: Any

    def __init__(self, core: Any) -> None:
        self._core = core
        for role, token, number in core.special_tokens():
            setattr(self, f"{role}_token", token)
            setattr(self, f"{role}_token_id", number)

    @classmethod
    def from_pretrained(
        cls: type[Self], pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Reads the tokenizer in a folder, or in its `subfolder`."""
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        folder = local_folder(pretrained_model_name_or_path, subfolder, **hub)
        return cls(cls._core_class.load(folder / (subfolder or "")))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Copies the files that it was read from to a folder."""
        self._core.save(Path(save_directory))

    @property
    def model_max_length(self) -> int:
        """The longest sequence that the model takes, in tokens and with the special ones; 10^30 if no file says."""
        limit: int | None = self._core.model_max_length
        return int(1e30) if limit is None else limit

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        size: int = self._core.vocab_size
        return size

    def __len__(self) -> int:
        size: int = self._core.vocab_size
        return size

    def __call__(
        self,
        text: str | list[str],
        padding: str | bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """The numbers of a text, or of a list of texts.

        `padding` is `"max_length"`, `"longest"` or none; texts longer than `max_length`, or than the model takes, are cut with
        `truncation`; `return_tensors="pt"` gives tensors, which need texts of one length.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"`return_tensors` is pt or None, not {return_tensors}")
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._core.encode_untruncated(one) for one in texts]
        longest = max((len(row) for row in rows), default=0)
        limit = max_length or self.model_max_length
        length = limit if padding == "max_length" else min(longest, limit) if truncation else longest
        if padding in (False, "do_not_pad") and len({len(row) for row in rows}) > 1:
            if return_tensors is not None:
                raise ValueError("texts of several lengths make no tensor: set `padding`")
            short = [row if not truncation or len(row) <= limit else self._encode([one], limit)[0] for one, row in zip(texts, rows)]
            return BatchEncoding(short, [[1] * len(row) for row in short])
        if longest > length and not truncation:
            length = longest
        ids, mask, _ = self._core.encode_batch(texts, length)
        if return_tensors == "pt":
            return BatchEncoding(ids, mask)
        if isinstance(text, str):
            return BatchEncoding(ids[0].tolist(), mask[0].tolist())
        return BatchEncoding(ids.tolist(), mask.tolist())

    def _encode(self, texts: list[str], length: int) -> list[list[int]]:
        rows: list[list[int]] = self._core.encode_batch(texts, length)[0].tolist()
        return rows

    def tokenize_for_prompt(self, texts: list[str], max_length: int) -> tuple[torch.Tensor, torch.Tensor, list[str] | None]:
        """What a pipeline takes: the numbers, which of them are text, and what was cut off, if anything."""
        ids, mask, removed = self._core.encode_batch(texts, max_length)
        return ids, mask, removed

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """The text of numbers."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if skip_special_tokens:
            special = {number for _, _, number in self._core.special_tokens()}
            ids = [number for number in ids if number not in special]
        text: str = self._core.decode(ids)
        return text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The texts of several lists of numbers."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The number of a token, or of each of a list; `None` for what the vocabulary lacks."""
        if isinstance(tokens, str):
            return self._core.token_to_id(tokens)
        return [self._core.token_to_id(token) for token in tokens]


class CLIPTokenizer(Tokenizer):
    """Turns prompts into the numbers that `CLIPTextModel` takes, and back.

    >>> from tch_diffusers.utils import bundled_model
    >>> tokenizer = CLIPTokenizer.from_pretrained(bundled_model(), subfolder="tokenizer")
    >>> inputs = tokenizer("a red circle", padding="max_length", truncation=True, return_tensors="pt")
    >>> inputs.input_ids.shape[1] == tokenizer.model_max_length
    True
    """

    _core_class = _tch_diffusers.CLIPTokenizer
