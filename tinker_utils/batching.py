"""Examples → batches in a seeded order, each knowing its token and completion-token counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    """Examples that make one optimizer step, or one request of an evaluation."""

    data: tuple[Example, ...]

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


@lru_cache(maxsize=2)
def epoch_order(conversations: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the order of an epoch, from 1: a permutation of 0…conversations - 1 fixed by seed and epoch.

    It sorts the raw output of PCG64, which NumPy promises not to change, rather than call `Generator.permutation`,
    about which it promises nothing: a run that is resumed after an upgrade still sees the batches that were left.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(conversations)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    order.setflags(write=False)
    return order


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """All batches of a run, by step number, so that a resumed run picks up exactly where it was.

    A batch has the examples of `batch_size` conversations: mostly one of each. The last batch of an epoch may be
    smaller; it is trained on too. A conversation without an example has a place in the order, and is skipped in its
    batch. Steps that are `skipped` have a batch that is not to be trained on.
    """

    conversations: Sequence[tuple[Example, ...]]
    batch_size: int
    seed: int
    epochs: int
    skipped: frozenset[int] = frozenset()

    @property
    def steps_per_epoch(self) -> int:
        """Return optimizer steps in one epoch."""
        return -(-len(self.conversations) // self.batch_size)

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
        return (step - 1) // self.steps_per_epoch + 1

    def indices(self, step: int) -> NDArray[np.int32]:
        """Return which conversations step `step` trains on, shape [batch_size] or less at an epoch's end."""
        order = epoch_order(len(self.conversations), self.seed, self.epoch_of(step))
        start = (step - 1) % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size]

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, from 1."""
        return Batch(tuple(example for i in self.indices(step).tolist() for example in self.conversations[i]))


def in_batches(examples: Sequence[Example], batch_size: int) -> Iterator[Batch]:
    """Yield the examples in their own order, for an evaluation."""
    for start in range(0, len(examples), batch_size):
        yield Batch(tuple(examples[start : start + batch_size]))
