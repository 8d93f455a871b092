"""The conversations of a source: read as a whole, or indexed in one pass where they are too large for memory.

Indexing takes a few seconds a gigabyte, as `msgspec` decodes the lines that hold nothing unusual. Any other is looked
at by `parse_conversation`, which decides, and which says what is wrong.
"""

from __future__ import annotations

import codecs
import copy
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from tinker_utils.basics.strict_json import json_problem, may_be_too_deep, parse_json
from tinker_utils.config.paths import as_path
from tinker_utils.data.chat import Conversation, Role
from tinker_utils.data.formats.reader import MESSAGES, RowReader
from tinker_utils.data.sources.naming import Source
from tinker_utils.data.sources.rows import Rows
from tinker_utils.errors import DataError

# Rows that are read together where all are read.
_TOGETHER = 1024
# Where a line begins, how many bytes it has, and its number.
_PLACE = np.dtype([("offset", np.int64), ("size", np.uint32), ("number", np.uint32)])
# Unusable lines whose sentences are kept, and after which a file of which they are the half is read no further.
_MAX_PROBLEMS = 1000


class _Plain(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: Role
    content: str


class _PlainLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A line without further fields, which is all that many files have."""

    messages: list[_Plain]


class _Usual(msgspec.Struct, gc=False):
    role: Role
    content: str
    weight: UnsetType | None = UNSET
    train: UnsetType | None = UNSET
    trainable: UnsetType | None = UNSET
    tool_calls: UnsetType | None = UNSET
    reasoning_content: UnsetType | str | None = UNSET
    reasoning: UnsetType | str | None = UNSET
    name: UnsetType | str | None = UNSET
    tool_call_id: UnsetType | str | None = UNSET


class _UsualLine(msgspec.Struct, gc=False):
    """A line that can be used, whatever further fields it has."""

    messages: list[_Usual]
    tools: UnsetType | None = UNSET


_decode_plain = msgspec.json.Decoder(_PlainLine).decode
_decode_usual = msgspec.json.Decoder(_UsualLine).decode
_REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_conversations(path: Path | str, skip_unusable: bool = False) -> list[Conversation]:
    """Read all conversations of a file, in their order, each by its keys; blank lines are skipped.

    Args:
        path: the file.
        skip_unusable: whether lines that cannot be used are skipped, too, as `prepare` does up to a share of them.

    Raises:
        DataError: the file is missing or empty, of no kind that can be read, or holds what is no conversation.
    """
    conversations = list(iterate_conversations(as_path(path, "path"), skip_unusable=skip_unusable))
    if not conversations:
        raise DataError(_empty(path))
    return conversations


def iterate_conversations(
    source: Source, reader: RowReader | None = None, skip_unusable: bool = False
) -> Iterator[Conversation]:
    """Yield the conversations of a source one by one, for those that should not be held in memory; errors as above."""
    number, reader = 0, reader or RowReader()
    with Rows(source) as rows:
        for lines in rows:
            for raw in lines:
                number += 1
                if raw.removeprefix(codecs.BOM_UTF8).strip():
                    try:
                        yield parse_conversation(raw, f"{rows.at}{number}", reader)
                    except DataError:
                        if not skip_unusable:
                            raise


def parse_conversation(raw: bytes, place: str, reader: RowReader) -> Conversation:
    """Read the conversation that a line of JSON at this place holds; raises DataError where it holds none."""
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        row = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{place}: is not JSON ({json_problem(error)}); write one JSON object per line.") from error
    if _may_hold_surrogates(raw):
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: holds half of a surrogate pair, which is not a character; correct it."
            ) from error
    return reader.conversation(row, place)


class ChatIndex:
    """The places of those conversations of a source that have something to train on, in their order.

    Args:
        source: a file, which must not change as long as it is in use, or a split of a data set.
        answers: returns which messages of a conversation are trained on.
        max_skipped_share: the share of its lines that may be unusable.
        reader: reads its rows; by default, each by its keys.
        holds_out: says which conversations are held out for validation; None holds out none.

    Attributes:
        held_out: those, an index of their own; None where none are.
        source: where they are from.
        name: the same in short.
        sizes: bytes of each conversation's line, uint32, shape [conversations].
        identity: bytes and SHA-256 of the rows of a data set; a file has its own.
        formats: how many lines are of each format, of those that can be used.
        unanswered: how many more conversations the file has: those from which nothing can be learned; `reasons` names
            the first 1,000.
        unusable: how many lines cannot be used at all; `problems` says why, of the first 1,000.

    Raises:
        DataError: the file is missing or empty, or too many of its lines cannot be used.
    """

    def __init__(
        self,
        source: Source,
        answers: Callable[[Conversation], list[int]] = lambda conversation: conversation.answers("last_assistant"),
        max_skipped_share: float = 0.0,
        reader: RowReader | None = None,
        holds_out: Callable[[Conversation], bool] | None = None,
    ) -> None:
        self.source, self.name = source, Path(str(source)).name
        self.unanswered = self.unusable = 0
        self.held_out: ChatIndex | None = None
        self.problems: list[str] = []
        self.reasons: list[str] = []
        self.formats: Counter[str] = Counter()
        self._answers = answers
        self._reader = reader or RowReader()
        self._expects_messages = self._reader.is_plain  # rows of another format mostly follow each other
        self._reading = threading.Lock()  # a place is sought and read by one thread at a time
        places, held_out, offset, number = bytearray(), bytearray(), 0, 1
        with Rows(source, keep=True) as rows:
            self._at = rows.at
            for lines in rows:
                kept = self._usable(lines, number)
                lengths = np.array([len(line) for line in lines], np.int64)
                found = np.empty(len(lines), _PLACE)
                found["offset"] = offset + np.cumsum(lengths + 1) - lengths - 1  # a newline is no part of its line
                found["size"], found["number"] = lengths, number + np.arange(len(lines))
                places += found[kept].tobytes()
                if holds_out:
                    held_out += bytes(holds_out(self._parsed(lines[i], "")) for i in kept.tolist())
                offset, number = offset + int(lengths.sum()) + len(lines), number + len(lines)
                if self.unusable > max(_MAX_PROBLEMS, number / 2):
                    break
            self._file, self.identity = rows.descriptor(), rows.identity
        weakref.finalize(self, os.close, self._file)
        self._places = np.frombuffer(places, _PLACE)
        self.sizes: NDArray[np.uint32] = self._places["size"]
        if not self.lines:
            raise DataError(_empty(source))
        if self.unusable > max_skipped_share * self.lines:
            raise DataError(too_many(self.problems[0], self.unusable, self.lines, max_skipped_share))
        self._version = self._stat()
        if holds_out:
            self.held_out = self._split(np.frombuffer(held_out, np.bool_))

    def _split(self, held_out: NDArray[np.bool_]) -> ChatIndex:
        """Return an index of what is held out, and keep the rest."""
        other = copy.copy(self)
        other._file = os.dup(self._file)
        weakref.finalize(other, os.close, other._file)
        other.name = f"{self.name}, held out"
        other.unanswered, other.unusable, other.problems, other.reasons = 0, 0, [], []
        other.held_out, other.formats = None, Counter()  # formats are told of the file as a whole
        for index, chosen in ((other, held_out), (self, ~held_out)):
            index._places = self._places[chosen]
        self.sizes, other.sizes = self._places["size"], other._places["size"]
        return other

    def __len__(self) -> int:
        return len(self._places)

    @property
    def lines(self) -> int:
        """Return how many lines the file has that are not blank, those that are held out among them."""
        return len(self) + len(self.held_out or ()) + self.unanswered + self.unusable

    def conversations(self, rows: Sequence[int]) -> list[Conversation]:
        """Return the conversations at these places of the index.

        Raises:
            DataError: the file has been changed.
        """
        if self._stat() != self._version:
            raise DataError(f"{self.source}: was changed during the run; start again with the new data.")
        return [self._conversation(*place) for place in self._places[np.asarray(rows, np.int64)].tolist()]

    def __iter__(self) -> Iterator[Conversation]:
        for start in range(0, len(self), _TOGETHER):
            yield from self.conversations(range(start, min(start + _TOGETHER, len(self))))

    def _conversation(self, offset: int, size: int, number: int) -> Conversation:
        with self._reading:
            os.lseek(self._file, offset, os.SEEK_SET)
            raw = os.read(self._file, size)
        return self._parsed(raw, f"{self._at}{number}")

    def _parsed(self, raw: bytes, place: str) -> Conversation:
        if not self._reader.is_plain:
            return parse_conversation(raw, place, self._reader)
        try:
            plain = _decode_plain(raw).messages
        except _REFUSALS:
            return parse_conversation(raw, place, self._reader)
        messages = [{"role": message.role, "content": message.content} for message in plain]
        return Conversation(tuple(messages), place)

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._file)
        return stat.st_size, stat.st_mtime_ns

    def _usable(self, lines: list[bytes], first: int) -> NDArray[np.int64]:
        """Return which lines have something to train on, and count the others, but for blank ones."""
        others: list[int] = []
        read = 0
        for i, raw in enumerate(lines):
            if self._expects_messages and raw and _ends_with_an_answer(raw):
                continue
            read += 1
            if not raw.removeprefix(codecs.BOM_UTF8).strip():
                others.append(i)
                continue
            try:
                conversation = parse_conversation(raw, f"{self._at}{first + i}", self._reader)
                self.formats[conversation.format] += 1
                self._expects_messages = self._reader.is_plain and conversation.format == MESSAGES
                if self._answers(conversation):
                    continue
                self.unanswered += 1
                if len(self.reasons) < _MAX_PROBLEMS:
                    self.reasons.append(f"{conversation.source}: nothing in it is an answer to train on.")
            except DataError as error:
                self.unusable += 1
                if len(self.problems) < _MAX_PROBLEMS:
                    self.problems.append(str(error))
            others.append(i)
        self.formats += Counter({MESSAGES: len(lines) - read})
        return np.delete(np.arange(len(lines)), others)


def _ends_with_an_answer(raw: bytes) -> bool:
    """Return whether a line can be used and its last message is an answer; False where that takes a closer look."""
    try:
        messages: Sequence[_Plain | _Usual] = _decode_plain(raw).messages
    except _REFUSALS:
        # What is skipped by the next is checked here: nesting, characters, halves of surrogate pairs.
        if may_be_too_deep(raw) or _may_hold_surrogates(raw):
            return False
        try:
            messages = _decode_usual(raw).messages
            raw.decode("utf-8")
        except _REFUSALS:
            return False
    return len(messages) > 1 and messages[-1].role == "assistant"


def _may_hold_surrogates(raw: bytes) -> bool:
    """Return whether a line may hold what cannot be written as UTF-8: only an escape can bring that in."""
    return b"\\u" in raw and (b"\\ud" in raw or b"\\uD" in raw)


def too_many(problem: str, unusable: int, of: int, max_skipped_share: float) -> str:
    """Return the first line's problem, and that more lines have one than may be skipped."""
    return (
        f"{problem} {unusable:,} of {of:,} lines cannot be used, and data.max_skipped_share allows "
        f"{max_skipped_share:g} of them to be skipped."
    )


def _empty(source: object) -> str:
    return f'{source}: has no conversations; write one {{"messages": […]}} per line.'
