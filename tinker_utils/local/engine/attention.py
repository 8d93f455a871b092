"""Causal attention over packed rows: each row attends to itself alone, and nothing is computed for padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tinker_utils.local.engine.compat import flash_attention_on_cpu, flash_attention_on_cpu_backward

_BLOCK = 128
_MIN_IN_BLOCKS, MAX_IN_BLOCKS = 128, 1024
"""Tokens of the rows that are taken in blocks: shorter ones gain nothing by it, longer ones would keep too much."""


class Segment(NamedTuple):
    """Rows of equal length that lie one behind the other: where they begin, how many they are, how long each is."""

    start: int
    rows: int
    length: int


class SavedAttention(Protocol):
    """One segment's forward pass."""

    @property
    def out(self) -> Tensor:
        """Return the weighted values [rows, heads, length, d]."""

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of q, k and v, shaped like them, for that of `out`; call it only once."""


def segments(lengths: Sequence[int]) -> list[Segment]:
    """Return the segments of packed rows."""
    found, start = [], 0
    for length, group in itertools.groupby(lengths):
        count = len(list(group))
        found.append(Segment(start, count, length))
        start += count * length
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Sequence[Segment]) -> tuple[Tensor, list[SavedAttention]]:
    """Return softmax(q kᵀ / sqrt(d)) v, causal within each row.

    Args:
        q: [N, heads, d]; k, v: [N, groups, d]: each group of keys serves heads / groups heads.
        rows: where the rows are.

    Returns:
        [N, heads · d], and what `attend_backward` needs.
    """
    saved = [_forward(*(_heads_first(each, segment) for each in (q, k, v))) for segment in rows]
    return torch.cat([_rows(each.out) for each in saved]), saved


def attend_backward(gradient: Tensor, rows: Sequence[Segment], saved: Sequence[SavedAttention]) -> Iterator[Tensor]:
    """Yield the gradients of q, k and v, for the gradient [N, heads · d] of what `attend` returned."""
    shaped = gradient.view(len(gradient), -1, saved[0].out.shape[-1])
    parts = [each.backward(_heads_first(shaped, segment)) for segment, each in zip(rows, saved, strict=True)]
    for column in zip(*parts, strict=True):
        yield torch.cat([part.transpose(1, 2).flatten(0, 1) for part in column])


def _forward(q: Tensor, k: Tensor, v: Tensor) -> SavedAttention:
    """Compute one segment: q [rows, heads, length, d], k and v [rows, groups, length, d]."""
    if q.device.type != "cpu":
        return _Graph.of(q, k, v)
    if q.dtype == torch.float32 and _MIN_IN_BLOCKS <= q.shape[2] <= MAX_IN_BLOCKS:
        return _Blocks.of(q, k, v)
    return _Fused.of(q, k, v)


class _Graph(NamedTuple):
    """scaled_dot_product_attention, with autograd's graph."""

    inputs: tuple[Tensor, Tensor, Tensor]
    out: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> _Graph:
        with torch.enable_grad():
            q, k, v = inputs = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
            return cls(inputs, functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.out, self.inputs, gradient)


class _Fused(NamedTuple):
    """The function behind scaled_dot_product_attention on a CPU. Called directly, its backward pass needs no graph."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    logsumexp: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> _Fused:
        return cls(q, k, v, *flash_attention_on_cpu(q, k, v))

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        return flash_attention_on_cpu_backward(gradient, *self)


class _Blocks(NamedTuple):
    """A block of queries at a time, against the keys up to its end; the products are batched over rows and groups.

    PyTorch's fused attention computes the probabilities again in the backward pass. Here they are kept, which takes a
    quarter to two fifths less time forward and back.

    Attributes:
        blocks: of each block its scaled queries [rows · groups, shared · n, d], where the `shared` heads of a group lie
            one behind the other, and their probabilities [rows · groups, shared · n, keys].
        k, v: [rows · groups, length, d].
        out: [rows, heads, length, d].
    """

    blocks: list[tuple[Tensor, Tensor]]
    k: Tensor
    v: Tensor
    out: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> _Blocks:
        rows, heads, length, d = q.shape
        groups = k.shape[1]
        keys, values = k.reshape(-1, length, d), v.reshape(-1, length, d)
        later = torch.full((_BLOCK, _BLOCK), -torch.inf).triu(1)
        out = torch.empty(rows, length, heads, d).transpose(1, 2)
        blocks = []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            size = end - start
            queries = _grouped(q[:, :, start:end] * d**-0.5, groups)
            scores = torch.bmm(queries, keys[:, :end].mT)
            scores.view(rows * groups, -1, size, end)[..., start:].add_(later[:size, :size])
            probabilities = scores.softmax(-1)
            out[:, :, start:end] = torch.bmm(probabilities, values[:, :end]).view(rows, heads, size, d)
            blocks.append((queries, probabilities))
        return cls(blocks, keys, values, out)

    def backward(self, gradient: Tensor) -> tuple[Tensor, ...]:
        rows, heads, length, d = gradient.shape
        groups = len(self.k) // rows
        mean = torch.linalg.vecdot(gradient, self.out).unsqueeze(-1)
        dq = torch.empty(rows, length, heads, d).transpose(1, 2)
        dk, dv = torch.zeros_like(self.k), torch.zeros_like(self.v)
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            queries, probabilities = self.blocks.pop(0)
            dout = _grouped(gradient[:, :, start:end], groups)
            dv[:, :end] += torch.bmm(probabilities.mT, dout)
            dprobabilities = torch.bmm(dout, self.v[:, :end].mT)
            dscores = dprobabilities.sub_(_grouped(mean[:, :, start:end], groups)).mul_(probabilities)
            dk[:, :end] += torch.bmm(dscores.mT, queries)
            dqueries = torch.bmm(dscores, self.k[:, :end]).view(rows, heads, end - start, d)
            torch.mul(dqueries, d**-0.5, out=dq[:, :, start:end])
        return dq, dk.view(rows, groups, length, d), dv.view(rows, groups, length, d)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """Return [rows · groups, shared · n, w] of x [rows, heads, n, w]: the heads of a group one behind the other."""
    rows, _, _, width = x.shape
    return x.reshape(rows * groups, -1, width)


def _heads_first(x: Tensor, segment: Segment) -> Tensor:
    """Return [rows, heads, length, d], a view of x [N, heads, d]."""
    start, rows, length = segment
    return x[start : start + rows * length].view(rows, length, *x.shape[1:]).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """Return [rows · length, heads · d] of x [rows, heads, length, d]."""
    return x.detach().transpose(1, 2).flatten(2).flatten(0, 1)
