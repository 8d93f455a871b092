"""The examples of a chat file, rendered in blocks when they are needed: no file is held in memory as a whole.

Of a large file, tokens and lengths are estimated from the examples that were rendered first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Batch, BatchPlan, Example, epoch_order
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.rendering import RenderedSet, encode
from tinker_utils.data.template import Tokenizer
from tinker_utils.errors import DataError

# Rows rendered together, and the bytes that they may take: enough to keep the tokenizer's threads busy, little enough
# for memory, of which the tokenizer takes a hundred times as much. Where somebody waits for a block, it is smaller.
BLOCK, _BLOCK_BYTES = 1024, 1 << 19
_AWAITED_BYTES = 1 << 17
_BLOCKS_HELD = 8

Rows = NDArray[np.int32]


class RenderedFile(Sequence[Example | None]):
    """Row i is the i-th conversation with an answer to a prompt; None if `max_seq_length` leaves nothing of the answer.

    Args:
        chats: the file.
        tokenizer: renders it.
        max_seq_length: tokens that an example is cut to.
        train_on: which answers count.

    Attributes:
        tokens: of each row that was rendered once, its tokens, cut or not, at least 1; 0 of the others.
        completion_tokens: those of them that are in the loss, once it is cut.

    Raises (when a row is asked for):
        RenderingError: as `rendering.render`.
        DataError: the file has been changed.
    """

    def __init__(self, chats: ChatIndex, tokenizer: Tokenizer, max_seq_length: int, train_on: str) -> None:
        self.chats = chats
        self.max_seq_length = max_seq_length
        self._tokenizer = tokenizer
        self._train_on = train_on
        self.tokens = np.zeros(len(chats), np.uint32)
        self.completion_tokens = np.zeros(len(chats), np.uint32)
        self._held: deque[dict[int, Example | None]] = deque(maxlen=_BLOCKS_HELD)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._ahead: Future[None] | None = None

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, row: int) -> Example | None:  # type: ignore[override]  # nobody takes a slice
        row = range(len(self))[row]
        if self._missing([row]):
            self._hold([row])
        return next(block[row] for block in tuple(self._held) if row in block)

    def __iter__(self) -> Iterator[Example | None]:
        rows = list(range(len(self)))
        while rows:
            block = self._block(rows[:BLOCK], _BLOCK_BYTES)
            yield from self._render(block)
            rows = rows[len(block) :]

    def read_ahead(self, rows: Rows, upcoming: Rows) -> None:
        """Have `rows` rendered, and begin with what is missing of those that are `upcoming`, in a thread."""
        wanted, later = rows.tolist(), upcoming.tolist()
        if self._ahead is not None and (self._ahead.done() or self._missing(wanted)):
            self._ahead.result()
            self._ahead = None
        if missing := self._missing(wanted):
            self._hold(missing + self._block(self._missing(later), _AWAITED_BYTES))
        if self._ahead is None and (block := self._block(self._missing(later), _BLOCK_BYTES)):
            self._ahead = self._threads.submit(self._hold, block)

    def _missing(self, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if not any(row in block for block in tuple(self._held))]

    def _block(self, rows: list[int], max_bytes: int) -> list[int]:
        """Return as many of `rows` from their start as fit into so many bytes; one at least."""
        fitting = int(np.searchsorted(self.chats.sizes[rows[:BLOCK]].cumsum(dtype=np.int64), max_bytes))
        return rows[: max(1, fitting)]

    def _hold(self, rows: list[int]) -> None:
        self._held.append(dict(zip(rows, self._render(rows), strict=True)))

    def _render(self, rows: list[int]) -> list[Example | None]:
        examples: list[Example | None] = []
        encoded = encode(self.chats.conversations(rows), self._tokenizer, self._train_on)
        for row, each in zip(rows, encoded, strict=True):
            example = each and each.example(self.max_seq_length)
            self.tokens[row] = max(1, len(each.tokens)) if each else 1
            self.completion_tokens[row] = example.completion_tokens if example else 0
            examples.append(example)
        return examples


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """The examples of a file that is rendered while it is trained on.

    Which of them lose their whole answer to the length limit is not known before. So they keep their places in the
    order, and are skipped in their batches.

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
        """Return counts by those that are rendered: a random sample, if they are the first in an epoch's order.

        Raises:
            DataError: nothing can be learned from any of them.
        """
        chats, limit, tokens = examples.chats, examples.max_seq_length, examples.tokens
        known, usable = tokens > 0, examples.completion_tokens > 0
        rows = int(known.sum())
        if not usable.any():
            raise DataError(
                f"{chats.path}: none of {chats.unanswered + rows:,} conversations has a completion token within "
                f"training.max_seq_length = {limit}; raise it, or add assistant messages."
            )
        by_bytes = float(chats.sizes.sum(dtype=np.int64) / chats.sizes[known].sum(dtype=np.int64))
        by_rows = len(examples) / rows
        return cls(
            examples,
            exact=rows == len(examples),
            tokens=round(int((np.minimum(tokens[usable], limit).astype(np.int64) - 1).sum()) * by_bytes),
            completion_tokens=round(int(examples.completion_tokens.sum(dtype=np.int64)) * by_bytes),
            cut=round(int((tokens > limit).sum()) * by_rows),
            skipped=chats.unanswered + round(int((known & ~usable).sum()) * by_rows),
        )

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens that the model reads of each row, shape [rows], counted or estimated from its size."""
        sizes, limit = self.examples.chats.sizes, self.examples.max_seq_length
        lengths = np.minimum(self.examples.tokens, limit).astype(np.int64) - 1
        known = lengths >= 0
        per_byte = lengths[known].sum() / sizes[known].sum(dtype=np.int64)
        return np.where(known, lengths, np.minimum(sizes * per_byte, limit - 1).astype(np.int64))


def describe(data: RenderedSet | StreamedSet, name: str, max_seq_length: int) -> str:
    """Return one sentence for a person: how many examples and tokens, how many are cut and skipped."""
    about, end = "", "."
    if isinstance(data, StreamedSet):
        about, end = "" if data.exact else "about ", "; rendered during training."
    return (
        f"{name}: {len(data.examples):,} examples, {about}{data.tokens:,} tokens, {about}{data.completion_tokens:,} "
        f"of them completion tokens; cut at {max_seq_length:,} tokens: {about}{data.cut:,}; "
        f"skipped, because no completion token is left: {about}{data.skipped:,}{end}"
    )


@dataclass(frozen=True, eq=False)
class StreamedPlan(BatchPlan):
    """The batches of a streamed set: rendered ahead of their use."""

    examples: RenderedFile

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, from 1; empty where none of its examples has an answer left."""
        self.read_ahead(step)
        return super().batch(step)

    def read_ahead(self, step: int) -> None:
        """Have the batch of a step rendered, and begin with those that follow it in its epoch."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size + self.batch_size
        order = epoch_order(len(self.examples), self.seed, self.epoch_of(step))
        self.examples.read_ahead(self.indices(step), order[start : start + 2 * BLOCK])


def render_all(file: RenderedFile) -> RenderedSet:
    """Render all examples of a file, in memory; raises DataError where there is none."""
    examples = tuple(example for example in file if example is not None)
    counts = StreamedSet.of(file)
    return RenderedSet(examples, counts.cut, counts.skipped)
