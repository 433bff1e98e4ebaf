"""T5's encoder.

Mirrors `T5EncoderModel` of `transformers/models/t5/modeling_t5.py` at 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tch_diffusers import _tch_diffusers
from tch_diffusers.models.modeling_utils import ModelMixin
from tch_diffusers.utils import BaseOutput

__all__ = ["T5EncoderModel", "T5EncoderModelOutput"]


@dataclass(eq=False)
class T5EncoderModelOutput(BaseOutput):
    """What the encoder gives."""

    last_hidden_state: torch.Tensor


class T5EncoderModel(ModelMixin):
    """The encoder half of T5, which FLUX.1 reads long prompts with.

    >>> import torch
    >>> config = dict(vocab_size=9, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    >>> T5EncoderModel.from_config(config)(torch.zeros(1, 5, dtype=torch.int64)).last_hidden_state.shape
    torch.Size([1, 5, 16])
    """

    _core_class = _tch_diffusers.T5EncoderModel
    _core: _tch_diffusers.T5EncoderModel

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> T5EncoderModelOutput | tuple[object, ...]:
        """The last hidden state, `[batch, tokens, d_model]`."""
        if output_hidden_states:
            raise NotImplementedError("the hidden states of single layers are not kept: leave `output_hidden_states` at False")
        output = T5EncoderModelOutput(self._core.forward(input_ids, attention_mask))
        return output if return_dict else output.to_tuple()
