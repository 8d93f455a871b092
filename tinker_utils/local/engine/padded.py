"""The decoder of any architecture, by transformers, peft and autograd: rows side by side, padded to the longest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinker_utils.local.engine.lora_linear import Lora
from tinker_utils.local.protocol.tensors import Array

MICRO_BATCH_TOKENS = 8192


class PaddedDecoder:
    """A decoder that autograd differentiates.

    Args:
        hidden: the decoder with its active adapter, from tokens [B, T] to hidden states [B, T, H].
        device: where it computes.
    """

    packed = False

    def __init__(self, hidden: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.micro_batch_tokens = MICRO_BATCH_TOKENS
        self._hidden = hidden
        self._device = device

    def run(self, rows: Sequence[Array], lora: Lora, backward: bool) -> PaddedPass:
        """Compute hidden states of rows of tokens, each int64 [T]. `lora` is not read: peft knows its factors."""
        tokens, real = _pad(rows)
        with torch.enable_grad() if backward else torch.no_grad():
            hidden = self._hidden(torch.from_numpy(tokens).to(self._device))
            return PaddedPass(hidden[torch.from_numpy(real).to(self._device)])


@dataclass
class PaddedPass:
    """One forward pass: hidden states [N, H] of the real positions."""

    hidden: Tensor

    def backward(self, gradient: Tensor, active: Tensor) -> None:
        """Add the parameters' gradients, for the gradient [n, H] at the positions `active` [n], zero at all others."""
        # Without adapters in the decoder there is nobody to pass it to.
        if self.hidden.requires_grad:
            whole = torch.zeros_like(self.hidden).index_copy_(0, active, gradient)
            self.hidden.backward(whole)  # type: ignore[no-untyped-call]


def _pad(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Return int64 tokens [B, T], padded on the right with token 0, and where they are real, bool [B, T].

    No mask is needed: a causal model's real positions never look at what stands to their right.
    """
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(real.shape, np.int64)
    tokens[real] = np.concatenate(rows)
    return tokens, real
