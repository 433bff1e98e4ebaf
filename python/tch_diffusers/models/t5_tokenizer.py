"""T5's tokenizer.

Mirrors `T5Tokenizer` of `transformers/models/t5/tokenization_t5.py` at 5.23.
"""

from __future__ import annotations

from tch_diffusers import _tch_diffusers
from tch_diffusers.models.clip_tokenizer import Tokenizer

__all__ = ["T5Tokenizer"]


class T5Tokenizer(Tokenizer):
    """Turns prompts into the numbers that `T5EncoderModel` takes, and back.

    It is read from `tokenizer.json`, or from SentencePiece's `spiece.model` alone, for which no package is needed.
    """

    _core_class = _tch_diffusers.T5Tokenizer
