"""The small operations of a Qwen3 layer, forward and backward by hand: each in as few passes over memory as it takes.

Sums and roots are taken in float32, as transformers does it, whatever the type of the values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tinker_utils.local.engine.compat import silu_backward


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) over the last dimension, in x's type, and 1 / rms(x) in float32, its last dimension 1.

    rms(x) = sqrt(mean(x²) + eps).
    """
    wide = x.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    return (wide * inverse).to(x.dtype), inverse


def normalize_backward(dn: Tensor, n: Tensor, inverse: Tensor) -> Tensor:
    """Return dx for n = x / rms(x): (dn - n · mean(dn · n)) / rms(x)."""
    mean = torch.linalg.vecdot(dn.float(), n.float()).div_(n.shape[-1]).unsqueeze(-1)
    return torch.addcmul(dn.float(), n.float(), mean, value=-1).mul_(inverse).to(dn.dtype)


class Rotation(NamedTuple):
    """Rotary embedding at each position: cosines and sines [N, 1, d], as transformers' models give them."""

    cos: Tensor
    sin: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return x · cos + rotate_half(x) · sin for x [N, heads, d]."""
        half = x.shape[-1] // 2
        y = x * self.cos
        y[..., :half].addcmul_(x[..., half:], self.sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], self.sin[..., half:])
        return y

    def backward(self, dy: Tensor) -> Tensor:
        """Return dx: dy, rotated back."""
        half = dy.shape[-1] // 2
        dx = dy * self.cos
        dx[..., :half].addcmul_(dy[..., half:], self.sin[..., half:])
        dx[..., half:].addcmul_(dy[..., :half], self.sin[..., :half], value=-1)
        return dx


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) · up [N, I] for gate and up side by side [N, 2 I]."""
    gate, up = gate_up.chunk(2, dim=1)
    return functional.silu(gate).mul_(up)


def swiglu_backward(dy: Tensor, gate_up: Tensor) -> Tensor:
    """Return the gradient of gate and up side by side [N, 2 I]."""
    gate, up = gate_up.chunk(2, dim=1)
    gradient = torch.empty_like(gate_up)
    dgate, dup = gradient.chunk(2, dim=1)
    # Computed once more: reading it back from memory takes longer.
    torch.mul(dy, functional.silu(gate), out=dup)
    silu_backward(dy * up, gate, out=dgate)
    return gradient
