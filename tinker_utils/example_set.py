"""The examples of one file and what is known of them: all of it where they are few, else an estimate from a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Batch, BatchPlan, epoch_order
from tinker_utils.rendered_file import BLOCK, RenderedFile
from tinker_utils.rendering import RenderedSet


class ExampleSet(Protocol):
    """What a run is planned by."""

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""

    @property
    def cut(self) -> int:
        """How many examples were cut."""

    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the model reads of each example, shape [examples]."""

    def describe(self, name: str, max_seq_length: int) -> str:
        """One sentence for a person."""


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """The examples of a file that is rendered while it is trained on.

    Which of them lose their whole answer to the length limit is not known before. So they keep their places in the
    order, and are left out of their batches.

    Attributes:
        examples: each that holds an answer; None in place of one that has lost it.
        exact: whether all were rendered before, so that the counts are no estimates.
        tokens, completion_tokens, cut, skipped: as in `RenderedSet`.
    """

    examples: RenderedFile
    exact: bool
    tokens: int
    completion_tokens: int
    cut: int
    skipped: int

    @classmethod
    def of(cls, examples: RenderedFile) -> StreamedSet:
        """Counts by those that are rendered: a random sample, if they are the first in an epoch's order."""
        known = examples.counts()
        exact = known.rows == len(examples)
        by_bytes, by_rows = 1 / (known.share or 1), len(examples) / (known.rows or 1)
        return cls(
            examples,
            exact,
            tokens=round(known.tokens * by_bytes),
            completion_tokens=round(known.completion_tokens * by_bytes),
            cut=round(known.cut * by_rows),
            skipped=examples.chats.unanswered + round(known.cut_off * by_rows),
        )

    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the model reads of each example, counted or estimated, shape [examples]."""
        return self.examples.lengths()

    def describe(self, name: str, max_seq_length: int) -> str:
        """One sentence for a person: how many examples and tokens, how many are cut and skipped."""
        about = "" if self.exact else "about "
        return (
            f"{name}: {len(self.examples):,} examples, {about}{self.tokens:,} tokens, {about}"
            f"{self.completion_tokens:,} of them completion tokens; {about}{self.cut:,} cut to {max_seq_length:,} "
            f"tokens, {about}{self.skipped:,} skipped for having no answer to a prompt within that; "
            "rendered while they are trained on."
        )


@dataclass(frozen=True, eq=False)
class StreamedPlan(BatchPlan):
    """The batches of a streamed set: rendered ahead of their use."""

    examples: RenderedFile

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, from 1; empty where none of its examples has an answer left."""
        self.read_ahead(step)
        return super().batch(step)

    def read_ahead(self, step: int) -> None:
        """Have the batch of a step rendered, and begin with those that follow it in its epoch."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size + self.batch_size
        order = epoch_order(len(self.examples), self.seed, self.epoch_of(step))
        self.examples.read_ahead(self.indices(step), order[start : start + 2 * BLOCK])


def render_all(file: RenderedFile) -> RenderedSet:
    """All examples of a file, in memory."""
    examples = tuple(example for example in file if example is not None)
    counts = file.counts()
    return RenderedSet(examples, counts.cut, file.chats.unanswered + counts.cut_off)
