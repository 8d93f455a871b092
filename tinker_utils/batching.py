"""Examples → batches in a seeded order, each knowing its token and completion-token counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Example:
    """One rendered conversation.

    Attributes:
        tokens: token ids t0…tn, int32, shape [n + 1], n ≥ 1.
        weights: weights of the targets t1…tn, float32, shape [n]: 1 on completion tokens, 0 elsewhere.
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    completion_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or len(self.tokens) < 2 or self.weights.shape != (len(self.tokens) - 1,):
            raise ValueError(f"{self.tokens.shape} tokens need one weight fewer, got weights of {self.weights.shape}")
        object.__setattr__(self, "completion_tokens", int(np.count_nonzero(self.weights)))

    @property
    def input_tokens(self) -> NDArray[np.int32]:
        """Return t0…t(n-1), shape [n]."""
        return self.tokens[:-1]

    @property
    def target_tokens(self) -> NDArray[np.int32]:
        """Return t1…tn, shape [n]: the token that follows each input token."""
        return self.tokens[1:]

    @property
    def token_count(self) -> int:
        """Return tokens that the model reads, n: what the service bills."""
        return len(self.tokens) - 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that make one optimizer step, or one request of an evaluation.

    `sources` says which of several sources each is from, where they are trained on.
    """

    data: tuple[Example, ...]
    sources: tuple[int, ...] = ()

    @cached_property
    def tokens(self) -> int:
        """Return tokens that the model reads for this batch."""
        return sum(example.token_count for example in self.data)

    @cached_property
    def completion_tokens(self) -> int:
        """Return tokens that the loss is taken over."""
        return sum(example.completion_tokens for example in self.data)

    def normalized_weights(self) -> list[NDArray[np.float32]]:
        """Return each example's weights over the completion tokens of the whole batch, so that all of them sum to 1.

        With them the service's weighted sum is the mean over the batch's completion tokens, and so is its gradient.
        """
        return [example.weights / np.float32(self.completion_tokens) for example in self.data]


def epoch_order(conversations: int, seed: int, epoch: int, source: int = 0) -> NDArray[np.int32]:
    """Return the order of an epoch, from 1: a permutation of 0…conversations - 1 fixed by seed and epoch.

    It sorts the raw output of PCG64, which NumPy promises not to change, rather than call `Generator.permutation`,
    about which it promises nothing: a run that is resumed after an upgrade still sees the batches that were left.

    Args:
        conversations: how many there are.
        seed: what else decides the order.
        epoch: … and the epoch; 0 is that of subsets which stay the same.
        source: from 1, of several sources that are each put in an order of their own.
    """
    entropy = [seed, epoch, source] if source else [seed, epoch]
    keys = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(conversations)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Mixture:
    """How much an epoch takes of each source; the conversations of all sources stand one source behind the other.

    Attributes:
        sizes: conversations of each source.
        draws: how many of them an epoch takes, drawn anew for each epoch; none twice in one.
    """

    sizes: tuple[int, ...]
    draws: tuple[int, ...]

    @classmethod
    def of(
        cls, sizes: Sequence[int], weights: Sequence[float] | None = None, limits: Sequence[int | None] | None = None
    ) -> Mixture:
        """Return how much to take of each source.

        Without weights all of each source, up to its limit. With weights their shares are exactly those of the weights:
        an epoch has as many whole units of them, such as 7 and 3 conversations for 0.7 and 0.3, as the sources have,
        up to their limits. Where not even one unit fits, shares are those of the weights to half a conversation.
        """
        most = [min(size, limit or size) for size, limit in zip(sizes, limits or [None] * len(sizes), strict=True)]
        if weights is None:
            return cls(tuple(sizes), tuple(most))
        given = [Fraction(str(weight)) for weight in weights]
        whole = [int(share * math.lcm(*(each.denominator for each in given))) for share in given]
        unit = [share // math.gcd(*whole) for share in whole]
        units = min(Fraction(each, share) for each, share in zip(most, unit, strict=True))
        units = Fraction(int(units)) or units
        return cls(tuple(sizes), tuple(int(units * share + Fraction(1, 2)) for share in unit))

    @property
    def total(self) -> int:
        """Return how many conversations an epoch has."""
        return sum(self.draws)

    @property
    def takes_all(self) -> bool:
        """Return whether an epoch has all conversations, as it has without any mixture."""
        return self.draws == self.sizes

    @property
    def mixes(self) -> bool:
        """Return whether there are several sources, or only a part of one is taken."""
        return len(self.sizes) > 1 or not self.takes_all

    def order(self, seed: int, epoch: int) -> NDArray[np.int32]:
        """Return an epoch's conversations in their order, shape [total]."""
        return _mixed_order(self, seed, epoch)

    def source_of(self, conversations: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return which source conversations are from, of the same shape."""
        return np.searchsorted(np.cumsum(self.sizes), conversations, side="right")


@lru_cache(maxsize=2)
def _mixed_order(mixture: Mixture, seed: int, epoch: int) -> NDArray[np.int32]:
    if mixture.takes_all:
        return epoch_order(mixture.total, seed, epoch)
    drawn, start = [], 0
    for source, (size, draw) in enumerate(zip(mixture.sizes, mixture.draws, strict=True), 1):
        drawn.append(start + np.sort(epoch_order(size, seed, epoch, source)[:draw]))
        start += size
    order = np.concatenate(drawn)[epoch_order(mixture.total, seed, epoch)].astype(np.int32)
    order.setflags(write=False)
    return order


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """All batches of a run, by step number, so that a resumed run picks up exactly where it was.

    A batch has the examples of `batch_size` conversations: mostly one of each. The last batch of an epoch may be
    smaller; it is trained on too. A conversation without an example has a place in the order, and is skipped in its
    batch. Steps that are `skipped` have a batch that is not to be trained on. `mixture` says how much is taken of each
    of several sources; None takes all conversations in each epoch.
    """

    conversations: Sequence[tuple[Example, ...]]
    batch_size: int
    seed: int
    epochs: int
    skipped: frozenset[int] = frozenset()
    mixture: Mixture | None = None

    @cached_property
    def _mixture(self) -> Mixture:
        return self.mixture or Mixture.of([len(self.conversations)])

    @property
    def steps_per_epoch(self) -> int:
        """Return optimizer steps in one epoch."""
        return -(-self._mixture.total // self.batch_size)

    @property
    def refused(self) -> tuple[str, ...]:
        """Return why conversations that were rendered until now cannot be used; for those rendered before: none."""
        return ()

    @property
    def total_steps(self) -> int:
        """Return optimizer steps in the whole run."""
        return self.steps_per_epoch * self.epochs

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, that step `step`, from 1, belongs to."""
        return (max(step, 1) - 1) // self.steps_per_epoch + 1

    def order(self, epoch: int) -> NDArray[np.int32]:
        """Return the conversations of an epoch, in their order."""
        return self._mixture.order(self.seed, epoch)

    def indices(self, step: int) -> NDArray[np.int32]:
        """Return which conversations step `step` trains on, shape [batch_size] or less at an epoch's end."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size
        return self.order(self.epoch_of(step))[start : start + self.batch_size]

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, from 1."""
        rows = self.indices(step)
        found = list(
            zip(self._mixture.source_of(rows).tolist(), map(self.conversations.__getitem__, rows.tolist()), strict=True)
        )
        sources = tuple(source for source, examples in found for _ in examples)
        return Batch(tuple(example for _, examples in found for example in examples), sources)


def in_batches(examples: Sequence[Example], batch_size: int) -> Iterator[Batch]:
    """Yield the examples in their own order, for an evaluation."""
    for start in range(0, len(examples), batch_size):
        yield Batch(tuple(examples[start : start + batch_size]))
