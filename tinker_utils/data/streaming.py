"""The examples of a chat file, rendered in blocks when they are needed, and never twice: what is known is on disk.

Of a large file, tokens and lengths are estimated from the examples that were rendered first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tinker_utils.batching import Batch, BatchPlan, Example, epoch_order
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.rendering import Encoded, RenderedSet, encode
from tinker_utils.data.template import Tokenizer
from tinker_utils.data.token_cache import TokenCache, Words

# Rows rendered together, and the bytes that they may take: enough to keep the tokenizer's threads busy, little enough
# for memory, of which the tokenizer takes a hundred times as much. Where somebody waits for a block, it is smaller.
BLOCK, _BLOCK_BYTES = 1024, 1 << 19
_AWAITED_BYTES = 1 << 17
_COMPLETION = np.uint32(1 << 31)
_FORMAT = 1  # of what is kept: another one is another cache

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Counts:
    """Of the rows rendered so far.

    Attributes:
        rows: how many.
        bytes: their share in the bytes of all rows, in [0, 1].
        tokens: tokens that the model reads of them.
        completion_tokens: tokens in the loss.
        cut: how many were cut.
        cut_off: how many of these lost their whole answer, and so are no examples.
    """

    rows: int
    share: float
    tokens: int
    completion_tokens: int
    cut: int
    cut_off: int


class RenderedFile(Sequence[Example | None]):
    """Row i is the i-th conversation with an answer to a prompt; None if `max_seq_length` leaves nothing of the answer.

    Args:
        chats: the file.
        digest: SHA-256 of its content.
        tokenizer: renders it.
        max_seq_length: tokens that an example is cut to.
        train_on: which answers count.

    Raises (when a row is asked for):
        RenderingError: as `rendering.render`.
        DataError: the file has been changed.
    """

    def __init__(self, chats: ChatIndex, digest: str, tokenizer: Tokenizer, max_seq_length: int, train_on: str) -> None:
        self.chats = chats
        self.max_seq_length = max_seq_length
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._cache = TokenCache(len(chats), _key(digest, tokenizer, max_seq_length, train_on))
        # Where the disk takes no more, the latest blocks are all that is not rendered again.
        self._held: deque[dict[int, Words]] = deque(maxlen=8)
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: Future[None] | None = None

    def __len__(self) -> int:
        return len(self.chats)

    @overload
    def __getitem__(self, row: int) -> Example | None: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Example | None]: ...
    def __getitem__(self, row: int | slice) -> Example | Sequence[Example | None] | None:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        row = range(len(self))[row]
        words = self._words(row)
        if words is None:
            self._render([row])
            words = self._words(row)
        assert words is not None
        return _example(words, self.max_seq_length)

    def __iter__(self) -> Iterator[Example | None]:
        for start in range(0, len(self), BLOCK):
            missing = self._missing(np.arange(start, min(start + BLOCK, len(self)), dtype=np.int32))
            while block := self._block(missing, _BLOCK_BYTES):
                self._render(block)
                missing = missing[len(block) :]
            yield from (self[row] for row in range(start, min(start + BLOCK, len(self))))

    def read_ahead(self, rows: Rows, upcoming: Rows) -> None:
        """Have `rows` rendered, and begin with what is missing of those that are `upcoming`, in a thread."""
        if self._missing(rows) and self._ahead is not None:
            self._ahead.result()
        if missing := self._missing(rows):
            self._render(missing + self._block(self._missing(upcoming), _AWAITED_BYTES))
        if self._cache.refused or (self._ahead is not None and not self._ahead.done()):
            return
        if self._ahead is not None:
            self._ahead.result()
        if later := self._block(self._missing(upcoming), _BLOCK_BYTES):
            self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="render")
            self._ahead = self._threads.submit(self._render, later)

    def counts(self) -> Counts:
        """Return what is known of the rows rendered so far, in this run or before."""
        lengths, completion = self._cache.lengths, self._cache.completion_tokens
        known = lengths > 0
        usable = completion > 0
        share = float(self.chats.sizes[known].sum(dtype=np.int64) / self.chats.sizes.sum(dtype=np.int64))
        return Counts(
            rows=int(known.sum()),
            share=share,
            tokens=int((np.minimum(lengths[usable], self.max_seq_length).astype(np.int64) - 1).sum()),
            completion_tokens=int(completion.sum(dtype=np.int64)),
            cut=int((lengths > self.max_seq_length).sum()),
            cut_off=int((known & ~usable).sum()),
        )

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens that the model reads of each row, shape [rows], counted or estimated from its size."""
        lengths = np.minimum(self._cache.lengths, self.max_seq_length).astype(np.int64) - 1
        known = lengths >= 0
        per_byte = lengths[known].sum() / max(1, self.chats.sizes[known].sum(dtype=np.int64))
        estimated = np.minimum(self.chats.sizes * per_byte, self.max_seq_length - 1).astype(np.int64)
        return np.where(known, lengths, estimated)

    def _missing(self, rows: Rows) -> list[int]:
        absent = self._cache.missing(rows).tolist()
        return [row for row in absent if not any(row in held for held in self._held)] if self._held else absent

    def _block(self, rows: list[int], max_bytes: int) -> list[int]:
        """Return as many of `rows` from their start as fit into so many bytes; one at least."""
        fitting = int(np.searchsorted(self.chats.sizes[rows[:BLOCK]].cumsum(dtype=np.int64), max_bytes))
        return rows[: max(1, fitting)]

    def _words(self, row: int) -> Words | None:
        return next((held[row] for held in self._held if row in held), self._cache.get(row))

    def _render(self, rows: list[int]) -> None:
        if not rows:
            return
        encoded = encode(self.chats.conversations(rows), self._tokenizer, self._train_on)
        words = [_packed(each, self.max_seq_length) for each in encoded]
        completion = [int((each[1 : self.max_seq_length] >= _COMPLETION).sum()) for each in words]
        if not self._cache.put(rows, words, completion):
            self._held.append(dict(zip(rows, words, strict=True)))


def _packed(encoded: Encoded | None, max_seq_length: int) -> Words:
    """Return an encoded conversation in words: one more than fit, if there are, so that it is seen to have been cut."""
    if encoded is None or not len(encoded.tokens):
        return np.zeros(1, np.uint32)
    words = encoded.tokens[: max_seq_length + 1].astype(np.uint32)
    words[encoded.completion[: max_seq_length + 1]] |= _COMPLETION
    return words


def _example(words: Words, max_seq_length: int) -> Example | None:
    completion = words >= _COMPLETION
    return Encoded((words & ~_COMPLETION).astype(np.int32), completion).example(max_seq_length)


def _key(digest: str, tokenizer: Tokenizer, max_seq_length: int, train_on: str) -> str | None:
    """Return what names the rendering of a file; None where a tokenizer cannot be told from others."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers")]
    own = [getattr(tokenizer, name, None) for name in ("chat_template", "special_tokens_map")]
    parts = [_FORMAT, digest, max_seq_length, train_on, versions, own, backend.to_str()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


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
        """Return counts by those that are rendered: a random sample, if they are the first in an epoch's order."""
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
        """Return the tokens that the model reads of each row, shape [rows], counted or estimated from its size."""
        return self.examples.lengths()

    def describe(self, name: str, max_seq_length: int) -> str:
        """Return one sentence for a person: how many examples and tokens, how many are cut and skipped."""
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
        """Return the batch of step `step`, from 1; empty where none of its examples has an answer left."""
        self.read_ahead(step)
        return super().batch(step)

    def read_ahead(self, step: int) -> None:
        """Have the batch of a step rendered, and begin with those that follow it in its epoch."""
        start = (step - 1) % self.steps_per_epoch * self.batch_size + self.batch_size
        order = epoch_order(len(self.examples), self.seed, self.epoch_of(step))
        self.examples.read_ahead(self.indices(step), order[start : start + 2 * BLOCK])


def render_all(file: RenderedFile) -> RenderedSet:
    """Render all examples of a file, in memory."""
    examples = tuple(example for example in file if example is not None)
    counts = file.counts()
    return RenderedSet(examples, counts.cut, file.chats.unanswered + counts.cut_off)
