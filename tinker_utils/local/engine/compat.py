"""What PyTorch and its OpenMP keep for themselves, or transformers renames; tests/local guards it.

PyTorch's operators are called below its public functions, as their backward passes then need no graph.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@functools.cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """Return what a decoder's `forward` calls its cache of keys and values: transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def sleep_while_waiting(until: threading.Event, threads: int) -> None:
    """Have the threads that PyTorch computes with sleep when they wait for each other, until an event is set.

    GNU's OpenMP lets them spin for milliseconds, unless it has more threads than this process may use cores. So it is
    made to have more: those of a thread that does nothing. With another OpenMP nothing happens.

    Args:
        until: ends it.
        threads: more than there are cores.
    """
    openmp = _gnu_openmp()
    if openmp is None:
        return

    def hold() -> None:
        # A parallel region of a function that ignores its argument; its threads stay until this one ends.
        openmp.GOMP_parallel(ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p), None, threads, 0)
        until.wait()

    threading.Thread(target=hold, name="crowded", daemon=True).start()


@functools.cache
def _gnu_openmp() -> ctypes.CDLL | None:
    """Return the OpenMP that PyTorch has loaded, if it is GNU's."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    file = next((line.split(maxsplit=5)[5] for line in maps if "/libgomp" in line), None)
    return ctypes.CDLL(file) if file else None


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
