"""Chat files: read as a whole, or indexed in one pass where they are too large for memory.

Indexing takes a few seconds a gigabyte, as `msgspec` decodes the lines that hold nothing unusual. Any other is looked
at by `parse_conversation`, which decides, and which says what is wrong.
"""

from __future__ import annotations

import codecs
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from tinker_utils.basics.files import regular
from tinker_utils.basics.redaction import quoted
from tinker_utils.basics.strict_json import json_problem, may_be_too_deep, parse_json
from tinker_utils.config.paths import as_path
from tinker_utils.data.chat import Conversation, Role
from tinker_utils.data.formats import chat_messages, kind_of
from tinker_utils.errors import DataError

TRAIN_FILE, VALID_FILE, TEST_FILE = "train.jsonl", "valid.jsonl", "test.jsonl"
_PIECE = 1 << 20
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
    """Read all conversations of a chat JSONL file, in their order; blank lines are skipped.

    Args:
        path: the file.
        skip_unusable: whether lines that cannot be used are skipped, too, as `prepare` does up to a share of them.

    Raises:
        DataError: the file is missing or empty, or a line is not `{"messages": [{"role": …, "content": …}, …]}`.
    """
    conversations = list(iterate_conversations(as_path(path, "path"), skip_unusable))
    if not conversations:
        raise DataError(f'{path}: has no conversations; write one {{"messages": […]}} per line.')
    return conversations


def iterate_conversations(path: Path, skip_unusable: bool = False) -> Iterator[Conversation]:
    """Yield the conversations of a file one by one, for files that should not be held in memory; errors as above."""
    with open_data_file(path) as file:
        for number, raw in enumerate(file, start=1):
            if raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip():
                try:
                    yield parse_conversation(raw, path, number)
                except DataError:
                    if not skip_unusable:
                        raise


@contextmanager
def open_data_file(path: Path) -> Iterator[BinaryIO]:
    """Open a data file to read it as bytes; raises DataError where it cannot be read."""
    try:
        with open(path, "rb", buffering=1 << 20, opener=regular) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); the directory must hold train.jsonl and valid.jsonl."
        ) from error


def parse_conversation(raw: bytes, path: Path, number: int) -> Conversation:
    """Read the conversation that line `number` of a file, `raw`, holds; raises DataError where it holds none."""
    source = f"{path}:{number}"
    raw = raw.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").removesuffix(b"\n")
    try:
        line = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8.") from error
    except ValueError as error:
        raise DataError(f"{source}: is not JSON ({json_problem(error)}); write one JSON object per line.") from error
    if not isinstance(line, dict) or "messages" not in line:
        received = f"the keys {quoted(sorted(line))}" if isinstance(line, dict) else kind_of(line)
        raise DataError(
            f'{source}: expected {{"messages": [at least one message]}}, received {received}; correct the line.'
        )
    if _may_hold_surrogates(raw):
        try:
            json.dumps(line, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source}: holds half of a surrogate pair, which is not a character; correct the line."
            ) from error
    return chat_messages(line, source)


class ChatIndex:
    """The places of those conversations in a chat file that have something to train on, in the order of the file.

    Args:
        path: the file. It must not change as long as it is in use.
        answers: returns which messages of a conversation are trained on.
        max_skipped_share: the share of its lines that may be unusable.

    Attributes:
        path: the file.
        sizes: bytes of each conversation's line, uint32, shape [conversations].
        unanswered: how many more conversations the file has: those from which nothing can be learned; `reasons` names
            the first 1,000.
        unusable: how many lines cannot be used at all; `problems` says why, of the first 1,000.

    Raises:
        DataError: the file is missing or empty, or too many of its lines cannot be used.
    """

    def __init__(
        self,
        path: Path,
        answers: Callable[[Conversation], list[int]] = lambda conversation: conversation.answers("last_assistant"),
        max_skipped_share: float = 0.0,
    ) -> None:
        self.path = path
        self.unanswered = self.unusable = 0
        self.problems: list[str] = []
        self.reasons: list[str] = []
        self._answers = answers
        self._reading = threading.Lock()  # a place is sought and read by one thread at a time
        places = bytearray()
        with open_data_file(path) as file:
            for offset, number, lines in _pieces(file):
                kept = self._usable(lines, number)
                lengths = np.array([len(line) for line in lines], np.int64)
                found = np.empty(len(lines), _PLACE)
                found["offset"] = offset + np.cumsum(lengths + 1) - lengths - 1  # a newline is no part of its line
                found["size"], found["number"] = lengths, number + np.arange(len(lines))
                places += found[kept].tobytes()
                if self.unusable > max(_MAX_PROBLEMS, (number + len(lines)) / 2):
                    break
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._places = np.frombuffer(places, _PLACE)
        self.sizes: NDArray[np.uint32] = self._places["size"]
        if not self.lines:
            raise DataError(f'{path}: has no conversations; write one {{"messages": […]}} per line.')
        if self.unusable > max_skipped_share * self.lines:
            raise DataError(too_many(self.problems[0], self.unusable, self.lines, max_skipped_share))
        self._version = self._stat()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def lines(self) -> int:
        """Return how many lines the file has that are not blank."""
        return len(self) + self.unanswered + self.unusable

    def conversations(self, rows: Sequence[int]) -> list[Conversation]:
        """Return the conversations at these places of the index.

        Raises:
            DataError: the file has been changed.
        """
        if self._stat() != self._version:
            raise DataError(f"{self.path}: was changed during the run; start again with the new data.")
        path = str(self.path)  # once: it takes as long as to decode a line
        return [self._conversation(path, *place) for place in self._places[np.asarray(rows, np.int64)].tolist()]

    def _conversation(self, path: str, offset: int, size: int, number: int) -> Conversation:
        with self._reading:
            os.lseek(self._file, offset, os.SEEK_SET)
            raw = os.read(self._file, size)
        try:
            plain = _decode_plain(raw).messages
        except _REFUSALS:
            return parse_conversation(raw, self.path, number)
        messages = [{"role": message.role, "content": message.content} for message in plain]
        return Conversation(tuple(messages), f"{path}:{number}")

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._file)
        return stat.st_size, stat.st_mtime_ns

    def _usable(self, lines: list[bytes], first: int) -> NDArray[np.int64]:
        """Return which lines have something to train on, and count the others, but for blank ones."""
        others: list[int] = []
        for i, raw in enumerate(lines):
            if _ends_with_an_answer(raw):
                continue
            if not raw.removeprefix(codecs.BOM_UTF8 if first + i == 1 else b"").strip():
                others.append(i)
                continue
            try:
                if self._answers(parse_conversation(raw, self.path, first + i)):
                    continue
                self.unanswered += 1
                if len(self.reasons) < _MAX_PROBLEMS:
                    self.reasons.append(f"{self.path}:{first + i}: nothing in it is an answer to train on.")
            except DataError as error:
                self.unusable += 1
                if len(self.problems) < _MAX_PROBLEMS:
                    self.problems.append(str(error))
            others.append(i)
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
    return b"\\ud" in raw or b"\\uD" in raw


def too_many(problem: str, unusable: int, of: int, max_skipped_share: float) -> str:
    """Return the first line's problem, and that more lines have one than may be skipped."""
    return (
        f"{problem} {unusable:,} of {of:,} lines cannot be used, and data.max_skipped_share allows "
        f"{max_skipped_share:g} of them to be skipped."
    )


def _pieces(file: BinaryIO) -> Iterator[tuple[int, int, list[bytes]]]:
    """Yield a file in pieces of about a megabyte: (offset, number of the first line, the lines)."""
    offset, number = 0, 1
    while piece := file.read(_PIECE):
        piece += file.readline()
        lines = piece.split(b"\n")
        if not lines[-1]:
            lines.pop()
        yield offset, number, lines
        offset += len(piece)
        number += len(lines)
