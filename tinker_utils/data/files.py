"""A chat file too large for memory: each line checked in one pass, its conversation found again by its place.

Checking takes a few seconds a gigabyte, as `msgspec` decodes a line that has nothing but roles and contents. Any other
is looked at by `parse_conversation`, which decides, and which says what is wrong.
"""

from __future__ import annotations

import codecs
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tinker_utils.data.chat import Conversation, open_data_file, parse_conversation
from tinker_utils.errors import DataError

TRAIN_FILE, VALID_FILE, TEST_FILE = "train.jsonl", "valid.jsonl", "test.jsonl"
_PIECE = 1 << 20
# Where a line begins, how many bytes it has, and its number.
_PLACE = np.dtype([("offset", np.int64), ("size", np.uint32), ("number", np.uint32)])


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


class _Line(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A line without further fields, which is all that most files have."""

    messages: list[_Message]


_decode = msgspec.json.Decoder(_Line).decode
_REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class ChatIndex:
    """The places of those conversations in a chat file that hold an answer to a prompt, in the order of the file.

    Args:
        path: the file. It must not change as long as it is in use.

    Attributes:
        path: the file.
        sizes: bytes of each conversation's line, uint32, shape [conversations].
        unanswered: how many more conversations the file has: those from which nothing can be learned.

    Raises:
        DataError: the file is missing or empty, or a line of it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unanswered = 0
        self._reading = threading.Lock()  # a place is sought and read by one thread at a time
        places = bytearray()
        with open_data_file(path) as file:
            for offset, number, lines in _pieces(file):
                kept, unanswered = _answered(lines, path, number)
                self.unanswered += unanswered
                lengths = np.array([len(line) for line in lines], np.int64)
                found = np.empty(len(lines), _PLACE)
                found["offset"] = offset + np.cumsum(lengths + 1) - lengths - 1  # a newline is no part of its line
                found["size"], found["number"] = lengths, number + np.arange(len(lines))
                places += found[kept].tobytes()
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        if not places and not self.unanswered:
            raise DataError(f'{path}: has no conversations; write one {{"messages": […]}} per line.')
        self._places = np.frombuffer(places, _PLACE)
        self.sizes: NDArray[np.uint32] = self._places["size"]
        self._version = self._stat()

    def __len__(self) -> int:
        return len(self._places)

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
            plain = _decode(raw).messages
        except _REFUSALS:
            return parse_conversation(raw, self.path, number)
        messages = [{"role": message.role, "content": message.content} for message in plain]
        return Conversation(tuple(messages), f"{path}:{number}")

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._file)
        return stat.st_size, stat.st_mtime_ns


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


def _answered(lines: list[bytes], path: Path, first: int) -> tuple[NDArray[np.int64], int]:
    """Return (which lines hold an answer, how many hold none); raises DataError for a line that cannot be used."""
    others: list[int] = []
    unanswered = 0
    for i, raw in enumerate(lines):
        try:
            messages = _decode(raw).messages
            if messages[-1].role == "assistant" and len(messages) > 1:
                continue
        except (*_REFUSALS, IndexError):
            pass
        blank = not raw.removeprefix(codecs.BOM_UTF8 if first + i == 1 else b"").strip()
        if blank or not parse_conversation(raw, path, first + i).last_assistant():
            others.append(i)
            unanswered += not blank
    return np.delete(np.arange(len(lines)), others), unanswered
