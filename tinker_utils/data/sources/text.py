"""Text files → lines of JSON: JSONL, a JSON array, CSV. Bytes that are not UTF-8 stay so, and are told of later."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from tinker_utils.basics.redaction import quoted
from tinker_utils.data.formats.messages import kind_of
from tinker_utils.errors import DataError

_PIECE = 1 << 20
MAX_ROW = 64 << 20
"""Bytes of a row, at most: what has more is no row, but a file of another kind, or one quotation mark too few."""
_BLANK = re.compile(r"[ \t\r\n]*")
# JSON that breaks off is reported up to so many signs before its end, and a text that does, at its beginning.
_UNFINISHED = 16
# A number may go on where so many signs follow it, as 1 does where `e+` follows.
_OF_A_NUMBER = 2


def lines_of(file: IO[bytes], path: Path) -> Iterator[list[bytes]]:
    """Yield the lines of a file; raises DataError where one is too long."""
    number = 0
    while piece := file.read(_PIECE):
        piece += file.readline(MAX_ROW)
        lines = piece.split(b"\n")
        if not lines[-1]:
            lines.pop()
        elif len(lines[-1]) >= MAX_ROW:
            raise too_long(f"{path}:{number + len(lines)}")
        yield lines
        number += len(lines)


def array_rows(file: IO[bytes], path: Path) -> Iterator[list[bytes]]:
    """Yield the members of a JSON array as lines.

    Raises:
        DataError: it breaks off, or begins with what is no object.
    """
    members = _members(file, path)
    first = next(members, None)
    if first is None or not isinstance(first[0], dict):
        counts = Counter(kind_of(value) for value, _ in chain([first] if first else [], members))
        raise DataError(
            f"{path}: is {_counted(counts)}; expected an array of objects such as "
            '{"messages": [at least one message]}.'
        )
    lines, size = [_line(first[1])], 0
    for _, text in members:
        lines.append(_line(text))
        size += len(text)
        if size >= _PIECE:
            yield lines
            lines, size = [], 0
    yield lines


def separated_rows(file: IO[bytes], path: Path, delimiter: str) -> Iterator[list[bytes]]:
    """Yield the rows of CSV as lines, each at the line on which it begins; the first one names the columns.

    Raises:
        DataError: it is no CSV, or its columns have no names.
    """
    header = cast(io.BufferedReader, file).peek(_PIECE).lstrip(b"\r\n").partition(b"\n")[0]
    if delimiter == "," and b"," not in header:  # as a spreadsheet writes it where numbers have a decimal comma
        delimiter = next((each for each in ";\t" if each.encode() in header), delimiter)
    csv.field_size_limit(max(MAX_ROW, csv.field_size_limit()))
    reader = csv.reader(_decoded(file, path), delimiter=delimiter, strict=True)
    try:
        first = next(filter(any, islice(reader, _PIECE)), [])
        names = [name or f"column {i}" for i, name in enumerate(first, start=1)]  # as pandas' index is
        if len(set(names)) < len(names):
            raise DataError(
                f"{path}:{reader.line_num}: expected a name of its own for each column, received {quoted(names)}."
            )
        lines, size, number = [b""] * reader.line_num, 0, reader.line_num
        for fields in reader:
            row = _row(names, fields)
            lines += [row, *[b""] * (reader.line_num - number - 1)]
            size, number = size + len(row) + 1, reader.line_num
            if size >= _PIECE:
                yield lines
                lines, size = [], 0
        yield lines
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV ({error}); correct it.") from error


def _decoded(file: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_ROW), b""), start=1):
        if len(line) == MAX_ROW:
            raise too_long(f"{path}:{number}")
        yield line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _row(names: list[str], fields: list[str]) -> bytes:
    if not any(fields):
        return b""
    row: dict[str, Any] = dict(zip(names, fields, strict=False))
    if len(fields) != len(names):  # a delimiter without quotation marks: what is in which column is not known
        row = {f"{len(fields)} fields in {len(names)} columns": True}
    try:
        return msgspec.json.encode(row)
    except UnicodeEncodeError:  # not UTF-8, as it stays
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _members(file: IO[bytes], path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the members of a JSON array, each decoded, and as it is written."""
    text = _Text(file)
    number = 0
    text.next_sign()
    text.at += 1  # its bracket
    sign = "," if text.next_sign() != "]" else "]"
    while sign == ",":
        text.at += number > 0
        number += 1
        text.next_sign()
        yield text.value(f"{path}: row {number}")
        sign = text.next_sign()
    if sign != "]":
        found = f"goes on with {quoted(sign)}" if sign else "breaks off"
        raise DataError(f"{path}: its JSON array {found} behind row {number}; expected a comma, or its bracket.")
    text.at += 1
    if text.next_sign():
        raise DataError(
            f"{path}: goes on behind the end of its JSON array; expected one array of objects, or an object a line."
        )


class _Text:
    """A text of which a piece is in memory; `at` is where it is read on."""

    def __init__(self, file: IO[bytes]) -> None:
        self.at = 0
        self._file = file
        self._text, self._is_last = "", False
        self._decoded = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._decode = json.JSONDecoder().raw_decode

    def next_sign(self) -> str:
        """Go on to what is no white space, and return it; empty at the end."""
        while True:
            self.at = _BLANK.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text) or self._is_last:
                return self._text[self.at : self.at + 1]
            self._more()

    def value(self, place: str) -> tuple[Any, str]:
        """Return the JSON value that comes next, and its text; raises DataError where there is none."""
        while True:
            try:
                value, end = self._decode(self._text, self.at)
                if end + _OF_A_NUMBER < len(self._text) or self._is_last:
                    start, self.at = self.at, end
                    return value, self._text[start:end]
            except (ValueError, RecursionError) as error:
                if self._is_last or not self._may_go_on(error):
                    why = "it is nested too deeply" if isinstance(error, RecursionError) else _reason(error)
                    raise DataError(f"{place}: is not JSON ({why}); correct it.") from error
            if len(self._text) - self.at > MAX_ROW:
                raise too_long(place)
            self._more()

    def _may_go_on(self, error: Exception) -> bool:
        is_open = isinstance(error, json.JSONDecodeError) and error.msg.startswith("Unterminated string")
        return is_open or getattr(error, "pos", 0) > len(self._text) - _UNFINISHED

    def _more(self) -> None:
        piece = self._file.read(max(_PIECE, len(self._text) - self.at))  # a long value is not tried too often
        self._text, self.at = self._text[self.at :] + self._decoded(piece, not piece), 0
        self._is_last = not piece


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _line(text: str) -> bytes:
    """Return a JSON value on one line: no line breaks stand in its texts."""
    return text.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogateescape")


def _counted(counts: Counter[str]) -> str:
    """Return in words what an array holds, as in `a JSON array of 200 numbers`."""
    words = {kind: kind.partition(" ")[2] or kind for kind in counts} | {"true or false": "truth value"}
    held = " and ".join(f"{count:,} {words[kind]}{'s' * (count > 1)}" for kind, count in counts.items())
    return f"a JSON array of {held}" if held else "an empty JSON array"


def too_long(place: str) -> DataError:
    """Return the refusal of the row at a place."""
    return DataError(f"{place}: has more than {MAX_ROW >> 20} MiB, which is no row of a conversation; correct it.")
