"""Losses and gradients of a batch, in micro-batches that bound memory and change nothing else.

Logits are the largest tensors by far (positions times vocabulary), so they never exist for a whole micro-batch: the
head and the loss run over slices of the positions, each slice's gradient is taken at once, and only its gradient with
respect to the hidden states is kept for the decoder's backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import Base
from .losses import TARGETS, Loss
from .protobuf import Array, Datum

MICRO_BATCH_TOKENS = 8192
HEAD_SLICE_ELEMENTS = 1 << 25
"""Logits computed at once: 128 MiB in float32."""


@dataclass(frozen=True)
class LossOutput:
    """The summed loss, and for each datum the float32 log-probabilities of its targets, [T] or [T, K]."""

    loss: float
    logprobs: list[Array]


def compute(base: Base, data: Sequence[Datum], loss: Loss, options: Mapping[str, float], backward: bool) -> LossOutput:
    """Loss and log-probabilities of a batch; with `backward`, its gradient is added to the active adapter's.

    The loss is summed in float64, in the order of the data, so that it does not depend on how they were split.
    """
    logprobs: list[Array | None] = [None] * len(data)
    losses = np.zeros(len(data))
    sizes = [(_targets_per_position(datum), len(datum.tokens)) for datum in data]
    for indices in micro_batches(sizes, MICRO_BATCH_TOKENS):
        rows = [data[index] for index in indices]
        with torch.enable_grad() if backward else torch.inference_mode():
            values, terms = _micro_batch(base, rows, loss, options, backward)
        bounds = np.cumsum([len(row.tokens) for row in rows])[:-1]
        split = zip(indices, np.split(values, bounds), np.split(terms, bounds), strict=True)
        for index, row_values, row_terms in split:
            logprobs[index] = row_values.reshape(data[index].inputs[TARGETS].shape)
            losses[index] = row_terms.sum(dtype=np.float64)
    return LossOutput(float(losses.sum()), [row for row in logprobs if row is not None])


def micro_batches(sizes: Sequence[tuple[int, int]], budget: int) -> Iterator[list[int]]:
    """Indices of the rows to compute together: of similar length, and no more than `budget` tokens with padding.

    Args:
        sizes: for each row its targets per position, which must agree within a micro-batch, and its length.
        budget: tokens a micro-batch, padding included; a longer row makes a micro-batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        # The first row is the longest one, so it is what the others are padded to.
        width, length = sizes[batch[0]] if batch else sizes[index]
        if batch and (sizes[index][0] != width or (len(batch) + 1) * length > budget):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _micro_batch(
    base: Base, rows: Sequence[Datum], loss: Loss, options: Mapping[str, float], backward: bool
) -> tuple[Array, Array]:
    """Log-probabilities and loss terms of all real positions of some rows, each [positions, K]."""
    tokens, real = _pad([row.tokens for row in rows])
    columns = {name: torch.from_numpy(_stack(rows, name)).to(base.device) for name in (TARGETS, *loss.inputs)}
    hidden = base.hidden(torch.from_numpy(tokens).to(base.device))
    positions = hidden[torch.from_numpy(real).to(base.device)]
    if not backward:
        logprobs, terms = _forward(base, positions, columns, loss, options)
    else:
        leaf = positions.detach().requires_grad_()
        logprobs, terms = _forward_backward(base, leaf, columns, loss, options)
        # Without a gradient there is nothing to pass on, and without adapters in the decoder nobody to pass it to.
        if leaf.grad is not None and positions.requires_grad:
            positions.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return logprobs.cpu().numpy(), terms.cpu().numpy()


def _forward(
    base: Base, hidden: Tensor, columns: Mapping[str, Tensor], loss: Loss, options: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    logprobs = torch.cat(
        [_logprobs(base, hidden[part], columns[TARGETS][part]) for part in _slices(len(hidden), base.vocabulary)]
    )
    return logprobs, loss.terms(logprobs, columns, options)


def _forward_backward(
    base: Base, hidden: Tensor, columns: Mapping[str, Tensor], loss: Loss, options: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """As `_forward`, with the gradient added to `hidden.grad` and to the head's adapter, if it has one."""
    logprobs = torch.zeros_like(columns[TARGETS], dtype=torch.float32)
    terms = torch.zeros_like(logprobs)
    for part, has_gradient in _parts(columns, loss, base.vocabulary):
        inputs = {name: column[part] for name, column in columns.items()}
        with torch.set_grad_enabled(has_gradient):
            part_logprobs = _logprobs(base, hidden[part], inputs[TARGETS])
            part_terms = loss.terms(part_logprobs, inputs, options)
        if has_gradient:
            part_terms.sum().backward()  # type: ignore[no-untyped-call]
        logprobs[part] = part_logprobs.detach()
        terms[part] = part_terms.detach()
    return logprobs, terms


def _parts(columns: Mapping[str, Tensor], loss: Loss, vocabulary: int) -> Iterator[tuple[Tensor, bool]]:
    """Slices of the positions: first those that the loss has a gradient at, then the others."""
    count = len(columns[TARGETS])
    if loss.scale is None:
        active = torch.ones(count, dtype=torch.bool, device=columns[TARGETS].device)
    else:
        active = (columns[loss.scale] != 0).any(dim=1)
    for mask, has_gradient in ((active, True), (~active, False)):
        positions = mask.nonzero().squeeze(1)
        for part in _slices(len(positions), vocabulary):
            yield positions[part], has_gradient


def _logprobs(base: Base, hidden: Tensor, targets: Tensor) -> Tensor:
    """float32 [N, K]: log-probabilities of targets [N, K] after hidden states [N, H]."""
    logits = base.logits(hidden)
    return logits.gather(1, targets) - logits.logsumexp(dim=1, keepdim=True)


def _slices(count: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, HEAD_SLICE_ELEMENTS // vocabulary)
    return (slice(start, start + step) for start in range(0, count, step))


def _pad(rows: Sequence[Array]) -> tuple[Array, Array]:
    """int64 tokens [B, T], padded on the right with token 0, and where they are real, bool [B, T]."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(real.shape, np.int64)
    tokens[real] = np.concatenate(rows)
    return tokens, real


def _targets_per_position(row: Datum) -> int:
    targets = row.inputs[TARGETS]
    return targets.shape[1] if targets.ndim == 2 else 1


def _stack(rows: Sequence[Datum], name: str) -> Array:
    """One input of all rows, [positions, K]."""
    return np.concatenate([row.inputs[name].reshape(len(row.tokens), -1) for row in rows])
