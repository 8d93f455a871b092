"""The examples of a chat file, rendered in blocks when they are needed: no file is held in memory as a whole.

Of a large file, tokens and lengths are estimated from the examples that were rendered first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Batch, BatchPlan, Example
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import too_many
from tinker_utils.data.joined import Chats, sources_of_rows
from tinker_utils.data.rendering import RenderedSet, Renderer
from tinker_utils.errors import DataError, RenderingError

# Rows rendered together, and the bytes that they may take: enough to keep the tokenizer's threads busy, little enough
# for memory, of which the tokenizer takes a hundred times as much. Where somebody waits for a block, it is smaller.
BLOCK, _BLOCK_BYTES = 1024, 1 << 19
_AWAITED_BYTES = 1 << 17
_BLOCKS_HELD = 8

Rows = NDArray[np.int32]


class RenderedFile(Sequence[tuple[Example, ...]]):
    """Row i has the examples of the i-th conversation with an answer; none if `max_seq_length` leaves nothing of it.

    Args:
        chats: the file.
        renderer: renders it.
        max_seq_length: tokens that an example is cut to.

    Attributes:
        rendered: which rows were rendered once, bool, shape [rows].
        tokens: tokens that the model reads of each of them, int64, shape [rows].
        once: the same of its longest example.
        completion_tokens: how many of these are in the loss.
        cut: how many of its examples are longer than `max_seq_length`.
        problems: why rows that were rendered cannot be used.
        lost: where rows are whose whole answer is cut off.
        signs: of rows that were rendered and bear some, their `Rendered.signs`.
        watch: is called with each row that is rendered, its conversation and its signs, where it is set.

    Raises (when a row is asked for):
        DataError: the file has been changed.
    """

    def __init__(self, chats: Chats, renderer: Renderer, max_seq_length: int) -> None:
        self.chats = chats
        self.renderer = renderer
        self.max_seq_length = max_seq_length
        self.rendered = np.zeros(len(chats), np.bool_)
        self.tokens, self.once, self.completion_tokens, self.cut = np.zeros((4, len(chats)), np.int64)
        self.problems: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        self.signs: dict[int, frozenset[str]] = {}
        self.watch: Callable[[int, Conversation, frozenset[str]], None] | None = None
        self._held: deque[dict[int, tuple[Example, ...]]] = deque(maxlen=_BLOCKS_HELD)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._ahead: Future[None] | None = None

    def __len__(self) -> int:
        return len(self.chats)

    def __getitem__(self, row: int) -> tuple[Example, ...]:  # type: ignore[override]  # nobody takes a slice
        row = range(len(self))[row]
        if self._missing([row]):
            self._hold([row])
        return next(block[row] for block in tuple(self._held) if row in block)

    def __iter__(self) -> Iterator[tuple[Example, ...]]:
        rows = list(range(len(self)))
        while rows:
            block = self._block(rows[:BLOCK], _BLOCK_BYTES)
            yield from self._render(block)
            rows = rows[len(block) :]

    def unusable(self) -> tuple[str, ...]:
        """Return why lines cannot be used, as far as that is known: those that were rendered, then the others."""
        return (*(self.problems[row] for row in sorted(self.problems)), *self.chats.problems)

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

    def _render(self, rows: list[int]) -> list[tuple[Example, ...]]:
        limit = self.max_seq_length
        conversations = self.chats.conversations(rows)
        rendered = self.renderer.encode(conversations)
        found = [each.examples(limit) for each in rendered]
        lengths = [[len(encoded.tokens) for encoded in each.encoded] for each in rendered]
        read = [[min(length, limit) - 1 for length in each] for each in lengths]
        self.rendered[rows] = True
        self.tokens[rows] = list(map(sum, read))
        self.once[rows] = [max(each, default=0) for each in read]
        self.completion_tokens[rows] = [sum(example.completion_tokens for example in each) for each in found]
        self.cut[rows] = [sum(length > limit for length in each) for each in lengths]
        for row, conversation, each, examples in zip(rows, conversations, rendered, found, strict=True):
            if each.problem:
                self.problems[row] = each.problem
            elif each.encoded and not examples:
                self.lost[row] = conversation.source
            if self.watch:
                self.watch(row, conversation, each.signs)
            if each.signs:
                self.signs[row] = each.signs
        return found


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """The examples of a file that is rendered while it is trained on.

    Which of them lose their whole answer to the length limit is not known before. So they keep their places in the
    order, and are skipped in their batches.

    Attributes:
        examples: by conversation; none in place of one that has lost its answer.
        exact: whether all were rendered before, so that the counts are no estimates.
        tokens, completion_tokens, cut, skipped, unanswered, unusable, problems, reasons: as in `RenderedSet`.
    """

    examples: RenderedFile
    exact: bool
    tokens: int
    completion_tokens: int
    cut: int
    skipped: int
    unanswered: int
    unusable: int
    problems: tuple[str, ...]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, examples: RenderedFile, max_skipped_share: float) -> StreamedSet:
        """Return counts by those that are rendered: a random sample, if they are the first in an epoch's order.

        Raises:
            DataError: nothing can be learned from any of them, or too many lines cannot be used.
        """
        chats, limit, known = examples.chats, examples.max_seq_length, examples.rendered
        usable, rows = examples.completion_tokens > 0, int(known.sum())
        by_rows = len(examples) / max(1, rows)
        problems = examples.unusable()
        behind = f"its answer begins behind {limit:,} tokens, where it is cut; raise training.max_seq_length."
        refused = round(len(examples.problems) * by_rows)
        unusable = chats.unusable + refused
        if unusable > max_skipped_share * chats.lines:
            raise RenderingError(too_many(problems[0], unusable, chats.lines, max_skipped_share))
        if not usable.any():
            raise DataError(
                f"{chats.source}: none of {chats.unanswered + rows:,} conversations has a completion token within "
                f"training.max_seq_length = {limit}; raise it, or add assistant messages."
            )
        by_bytes = float(chats.sizes.sum(dtype=np.int64) / chats.sizes[known].sum(dtype=np.int64))
        return cls(
            examples,
            exact=rows == len(examples),
            tokens=round(int(examples.tokens[usable].sum()) * by_bytes),
            completion_tokens=round(int(examples.completion_tokens.sum()) * by_bytes),
            cut=round(int(examples.cut.sum()) * by_rows),
            skipped=round(int((known & ~usable & (examples.tokens > 0)).sum()) * by_rows),
            unanswered=chats.unanswered
            + round((int((known & (examples.tokens == 0)).sum()) - len(examples.problems)) * by_rows),
            unusable=unusable,
            problems=problems,
            reasons=(*problems, *(f"{source}: {behind}" for source in examples.lost.values()), *chats.reasons),
        )

    @property
    def source_of(self) -> NDArray[np.int64]:
        """Return which source each row is from, shape [rows]."""
        return sources_of_rows(self.examples.chats, np.arange(len(self.examples)))

    def read_once(self) -> int:
        """Return about how many tokens one pass has if each conversation is one example: its longest."""
        file = self.examples
        return round(self.tokens * float(file.once.sum() / max(1, file.tokens.sum())))

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens that the model reads of each row, shape [rows], counted or estimated from its size."""
        sizes, limit, known = self.examples.chats.sizes, self.examples.max_seq_length, self.examples.rendered
        lengths = self.examples.tokens
        per_byte = lengths[known].sum() / sizes[known].sum(dtype=np.int64)
        return np.where(known, lengths, np.minimum(sizes * per_byte, limit - 1).astype(np.int64))

    def completions(self) -> NDArray[np.int64]:
        """Return the completion tokens of each row, shape [rows]: the same share of the tokens of each."""
        share = np.float64(self.completion_tokens / max(1, self.tokens))
        return np.rint(self.lengths() * share).astype(np.int64)


def describe(data: RenderedSet | StreamedSet, name: str, max_seq_length: int) -> str:
    """Return one sentence for a person: how many examples and tokens, how many are cut and skipped."""
    about, end = "", "."
    if isinstance(data, StreamedSet):
        about, end = "" if data.exact else "about ", "; rendered during training."
    return (
        f"{name}: {len(data.examples):,} examples, {about}{data.tokens:,} tokens, {about}{data.completion_tokens:,} "
        f"of them completion tokens; cut at {max_seq_length:,} tokens: {about}{data.cut:,}; "
        f"skipped, because no completion token is left: {about}{data.skipped:,}"
        + (f", because they have none: {about}{data.unanswered:,}" if data.unanswered else "")
        + (f", because they cannot be used: {about}{data.unusable:,}" if data.unusable else "")
        + end
    )


@dataclass(frozen=True, eq=False)
class StreamedPlan(BatchPlan):
    """The batches of a streamed set: rendered ahead of their use."""

    conversations: RenderedFile

    @property
    def refused(self) -> tuple[str, ...]:
        """Return why conversations that were rendered until now cannot be used, in the order in which it was found."""
        return tuple(self.conversations.problems.values())

    def batch(self, step: int) -> Batch:
        """Return the batch of step `step`, from 1; empty where none of its examples has an answer left."""
        self.read_ahead(step)
        return super().batch(step)

    def read_ahead(self, step: int) -> None:
        """Have the batch of a step rendered, and begin with those that follow it in its epoch."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size + self.batch_size
        order = self.order(self.epoch_of(step))
        self.conversations.read_ahead(self.indices(step), order[start : start + 2 * BLOCK])


def render_all(file: RenderedFile, max_skipped_share: float = 0.0) -> RenderedSet:
    """Render all examples of a file, in memory; raises DataError as `StreamedSet.of`."""
    conversations = tuple(file)
    counts = StreamedSet.of(file, max_skipped_share)
    names = ("cut", "skipped", "unanswered", "unusable", "problems", "reasons")
    source_of = counts.source_of[[bool(examples) for examples in conversations]]
    return RenderedSet.of(conversations, source_of=source_of, **{name: getattr(counts, name) for name in names})
