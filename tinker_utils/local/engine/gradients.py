"""Losses and gradients of a batch, in micro-batches that bound memory and change nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tinker_utils.local.engine.head import Head
from tinker_utils.local.engine.lora_linear import Lora
from tinker_utils.local.engine.losses import TARGETS, Loss
from tinker_utils.local.protocol.tensors import Array, Datum


@dataclass(frozen=True)
class LossOutput:
    """The summed loss, and for each datum the float32 log-probabilities of its targets, [T] or [T, K].

    They are 0 at positions that a sparse loss does not look at.
    """

    loss: float
    logprobs: list[Array]


class Pass(Protocol):
    """One forward pass of the decoder over some rows: the hidden states [N, H] of all their positions."""

    hidden: Tensor

    def backward(self, gradient: Tensor, active: Tensor) -> None:
        """Add the adapter's gradients, for the gradient [n, H] at the positions `active` [n], zero at all others."""


class Decoder(Protocol):
    """Computes hidden states from rows of tokens.

    Attributes:
        packed: whether rows lie one behind the other; otherwise they are padded to the longest.
        micro_batch_tokens: how many tokens one pass should take at most, padding included.
    """

    packed: bool
    micro_batch_tokens: int

    def run(self, rows: Sequence[Array], lora: Lora, backward: bool) -> Pass:
        """Run a forward pass; with `backward`, keep what its gradient needs."""


@dataclass(frozen=True)
class Network:
    """A model as one request sees it: decoder, adapter and head."""

    decoder: Decoder
    lora: Lora
    head: Head
    device: torch.device


def compute(
    network: Network, data: Sequence[Datum], loss: Loss, options: Mapping[str, float], backward: bool
) -> LossOutput:
    """Compute loss and log-probabilities of a batch; with `backward`, add its gradient to the adapter's.

    The loss is summed in float64, in the order of the data, so that it does not depend on how they were split.
    """
    logprobs: list[Array | None] = [None] * len(data)
    losses = np.zeros(len(data))
    sizes = [(_targets_per_position(datum), len(datum.tokens)) for datum in data]
    for indices in micro_batches(sizes, network.decoder.micro_batch_tokens, network.decoder.packed):
        rows = [data[index] for index in indices]
        values, terms = _micro_batch(network, rows, loss, options, backward)
        bounds = np.cumsum([len(row.tokens) for row in rows])[:-1]
        split = zip(indices, np.split(values, bounds), np.split(terms, bounds), strict=True)
        for index, row_values, row_terms in split:
            logprobs[index] = row_values.reshape(data[index].inputs[TARGETS].shape)
            losses[index] = row_terms.sum(dtype=np.float64)
    return LossOutput(float(losses.sum()), [row for row in logprobs if row is not None])


def micro_batches(sizes: Sequence[tuple[int, int]], budget: int, packed: bool) -> Iterator[list[int]]:
    """Yield indices of the rows to compute together: of similar length, and no more than `budget` tokens.

    Args:
        sizes: for each row its targets per position, which must agree within a micro-batch, and its length.
        budget: tokens a micro-batch; a longer row makes a micro-batch of its own.
        packed: whether only the rows' own tokens count; otherwise the padding to the longest counts, too.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True):
        # The first row is the longest one, so it is what the others are padded to.
        width, length = sizes[batch[0]] if batch else sizes[index]
        cost = sizes[index][1] if packed else length
        if batch and (sizes[index][0] != width or tokens + cost > budget):
            yield batch
            batch, tokens, cost = [], 0, sizes[index][1]
        batch.append(index)
        tokens += cost
    if batch:
        yield batch


def _micro_batch(
    network: Network, rows: Sequence[Datum], loss: Loss, options: Mapping[str, float], backward: bool
) -> tuple[Array, Array]:
    """Compute log-probabilities and loss terms of all positions of some rows, each [positions, K]."""
    columns = {name: torch.from_numpy(_stack(rows, name)).to(network.device) for name in (TARGETS, *loss.inputs)}
    done = network.decoder.run([row.tokens for row in rows], network.lora, backward)
    scored = _Scored(network.head, done.hidden.detach(), columns, loss, options)
    scaled = _scaled(rows, loss)
    wanted = scaled if loss.sparse else np.ones_like(scaled)
    if backward and scaled.any():
        active = torch.from_numpy(np.flatnonzero(scaled)).to(network.device)
        done.backward(scored.differentiate(active), active)
        wanted = wanted & ~scaled
    scored.evaluate(torch.from_numpy(np.flatnonzero(wanted)).to(network.device))
    return scored.logprobs.cpu().numpy(), scored.terms.cpu().numpy()


class _Scored:
    """Log-probabilities and loss terms [N, K] of hidden states [N, H], filled in slice by slice."""

    def __init__(
        self,
        head: Head,
        hidden: Tensor,
        columns: Mapping[str, Tensor],
        loss: Loss,
        options: Mapping[str, float],
    ) -> None:
        self.logprobs = torch.zeros_like(columns[TARGETS], dtype=torch.float32)
        self.terms = torch.zeros_like(self.logprobs)
        self._head, self._hidden, self._columns, self._loss, self._options = head, hidden, columns, loss, options

    def differentiate(self, positions: Tensor) -> Tensor:
        """Fill in some positions [n], and return the loss's gradient by their hidden states [n, H]."""
        gradients = []
        for part in torch.split(positions, self._head.positions):
            inputs = {name: column[part] for name, column in self._columns.items()}

            def slope(logprobs: Tensor, part: Tensor = part, inputs: dict[str, Tensor] = inputs) -> Tensor:
                with torch.enable_grad():
                    leaf = logprobs.detach().requires_grad_()
                    terms = self._loss.terms(leaf, inputs, self._options)
                    (gradient,) = torch.autograd.grad(terms.sum(), leaf)
                self.terms[part] = terms.detach()
                return gradient

            self.logprobs[part], gradient = self._head.differentiate(self._hidden[part], inputs[TARGETS], slope)
            gradients.append(gradient)
        return torch.cat(gradients)

    def evaluate(self, positions: Tensor) -> None:
        """Fill in some positions [n], without a gradient."""
        for part in torch.split(positions, self._head.positions) if len(positions) else ():
            inputs = {name: column[part] for name, column in self._columns.items()}
            self.logprobs[part] = self._head.logprobs(self._hidden[part], inputs[TARGETS])
            self.terms[part] = self._loss.terms(self.logprobs[part], inputs, self._options)


def _scaled(rows: Sequence[Datum], loss: Loss) -> Array:
    """Return bool [N]: the positions that the loss has a gradient at."""
    if loss.scale is None:
        return np.ones(sum(len(row.tokens) for row in rows), bool)
    scaled: Array = (_stack(rows, loss.scale) != 0).any(axis=1)
    return scaled


def _targets_per_position(row: Datum) -> int:
    targets = row.inputs[TARGETS]
    return targets.shape[1] if targets.ndim == 2 else 1


def _stack(rows: Sequence[Datum], name: str) -> Array:
    """Return one input of all rows, [positions, K]."""
    return np.concatenate([row.inputs[name].reshape(len(row.tokens), -1) for row in rows])
