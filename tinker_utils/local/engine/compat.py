"""What PyTorch keeps for itself, or transformers renames; tests/local/engine/test_compat.py guards it.

PyTorch's operators are called below its public functions, as their backward passes then need no graph.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """Return what a decoder's `forward` calls its cache of keys and values: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def flash_attention_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return what causal `scaled_dot_product_attention` returns on a CPU, and the log of the softmax's sums.

    Args:
        q, k, v: shape [rows, heads, n, d].
    """
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    return out, logsumexp


def flash_attention_on_cpu_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v for the gradient of `out`."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, ...] = backward(gradient, q, k, v, out, logsumexp, 0.0, True)
    return found


def silu_backward(gradient: Tensor, x: Tensor, out: Tensor) -> None:
    """Write the gradient of silu(x) into `out`."""
    torch.ops.aten.silu_backward.grad_input(gradient, x, grad_input=out)
