"""Seeded dropout masks that cost less than the products they thin out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STEPS = 1 << 16


class Masks:
    """The dropout masks of one gradient pass, drawn one after the other from one seed.

    An element is dropped where 16 random bits, read as an integer, fall below rate · 2¹⁶. So the rate is exact to 2⁻¹⁷,
    and a mask is kept for the backward pass in two bytes an element. SFC64 fills four elements at once; its stream does
    not change between NumPy's versions.

    Args:
        seed: 64 bits that determine all masks.
        rate: the probability of dropping an element, from 0 up to but not including 1.
        device: where the masks are wanted. CUDA draws from a generator of its own.
    """

    def __init__(self, seed: int, rate: float, device: torch.device) -> None:
        dropped = min(round(rate * _STEPS), _STEPS - 1)
        self._first_kept = dropped - _STEPS // 2
        self.gain = _STEPS / (_STEPS - dropped)
        self._device = device
        self._bits = np.random.SFC64(seed)
        self._generator = None if device.type == "cpu" else torch.Generator(device).manual_seed(seed)

    def draw(self, rows: int, width: int) -> Tensor:
        """Return int16 [rows, width]: the next random bits."""
        if self._generator is not None:
            return torch.randint(
                -_STEPS // 2,
                _STEPS // 2,
                (rows, width),
                dtype=torch.int16,
                device=self._device,
                generator=self._generator,
            )
        words = self._bits.random_raw(-(-rows * width // 4))
        return torch.from_numpy(words.view(np.int16))[: rows * width].view(rows, width)

    def mask(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """Return 1 where an element stays and 0 where it is dropped; what stays is to be multiplied by `gain`."""
        if dtype == torch.float32:
            # Both steps are vectorized on the CPU; comparing integers there takes three times as long.
            return bits.to(dtype).ge_(self._first_kept)
        return (bits >= self._first_kept).to(dtype)
