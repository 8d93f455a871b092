"""Causal attention over packed rows: each row attends to itself alone, and nothing is computed for padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Span(NamedTuple):
    """Rows of equal length that lie one behind the other: where they begin, how many they are, how long each is."""

    start: int
    rows: int
    length: int


class Saved(NamedTuple):
    """What the backward pass of one span needs."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    logsumexp: Tensor | None


def spans(lengths: Sequence[int]) -> list[Span]:
    """The spans of packed rows."""
    found, start = [], 0
    for length, group in itertools.groupby(lengths):
        count = len(list(group))
        found.append(Span(start, count, length))
        start += count * length
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Sequence[Span]) -> tuple[Tensor, list[Saved]]:
    """softmax(q kᵀ / sqrt(d)) v, causal within each row.

    Args:
        q: [N, heads, d]; k, v: [N, groups, d]: each group of keys serves heads / groups heads.
        rows: where the rows are.

    Returns:
        [N, heads · d], and what `attend_backward` needs.
    """
    saved = [_forward(*(_heads_first(each, span) for each in (q, k, v))) for span in rows]
    return torch.cat([_rows(each.out) for each in saved]), saved


def attend_backward(gradient: Tensor, rows: Sequence[Span], saved: Sequence[Saved]) -> Iterator[Tensor]:
    """The gradients of q, k and v, for the gradient [N, heads · d] of what `attend` returned."""
    shaped = gradient.view(len(gradient), -1, saved[0].v.shape[-1])
    parts = [_backward(_heads_first(shaped, span), each) for span, each in zip(rows, saved, strict=True)]
    for column in zip(*parts, strict=True):
        yield torch.cat([part.transpose(1, 2).flatten(0, 1) for part in column])


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Saved:
    if q.device.type == "cpu":
        # What scaled_dot_product_attention calls. Called directly, its backward pass needs no graph.
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        return Saved(q, k, v, out, logsumexp)
    with torch.enable_grad():
        q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
        return Saved(q, k, v, functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), None)


def _backward(gradient: Tensor, saved: Saved) -> tuple[Tensor, ...]:
    q, k, v, out, logsumexp = saved
    if logsumexp is None:
        return torch.autograd.grad(out, (q, k, v), gradient)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, ...] = backward(gradient, q, k, v, out, logsumexp, 0.0, True)
    return found


def _heads_first(x: Tensor, span: Span) -> Tensor:
    """[rows, heads, length, d], a view of x [N, heads, d]."""
    start, rows, length = span
    return x[start : start + rows * length].view(rows, length, *x.shape[1:]).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """[rows · length, heads · d] of x [rows, heads, length, d]."""
    return x.detach().transpose(1, 2).flatten(2).flatten(0, 1)
