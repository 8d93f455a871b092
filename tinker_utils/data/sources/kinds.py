"""Finds what kind a file is of in its first bytes, whatever its name says; CSV alone has nothing but its name."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from tinker_utils.data.sources.naming import DELIMITERS, uncompressed
from tinker_utils.data.sources.tables import arrow_rows, parquet_rows
from tinker_utils.data.sources.text import array_rows, lines_of, separated_rows
from tinker_utils.errors import DataError

_GZIP = b"\x1f\x8b"
# A frame; or one that is to be skipped, with which files begin that were compressed in parallel.
_ZSTANDARD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
# Compressed bytes that are unpacked at once: of Zstandard, they may become 32,768 times as many.
_UNPACKED_AT_ONCE = 4096
_BUFFER = 1 << 20
# A file may be compressed again by who hands it on; one can be made that never ends to be compressed.
_LAYERS = 2
_TABLES = {b"PAR1": parquet_rows, b"ARROW1": arrow_rows, b"\xff\xff\xff\xff": arrow_rows}
# What people have in place of the file that they mean; in lower case.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; fetch that by `git lfs pull`",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"pk\x03\x04": "a ZIP archive, as .xlsx is",
    b"\xd0\xcf\x11\xe0": "a document of older Office programs, as .xls is",
    b"sqlite format 3": "an SQLite database",
    b"%pdf": "a PDF document",
    b"bzh": "compressed by bzip2",
    b"\xfd7zxz": "compressed by xz",
    b"\x93numpy": "an array of NumPy's",
    b"\x89png": "a picture",
    b"fea1": "a Feather file of version 1; write it anew by a newer Arrow",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
# One object over several lines.
_SPREAD = re.compile(rb'\{\s*\n\s*"')


class Pieces(NamedTuple):
    """The rows of a file in pieces; whether they are numbered by lines of text; whether they lie in it as they are."""

    pieces: Iterator[list[bytes]]
    is_text: bool
    in_place: bool


def pieces_in(file: IO[bytes], path: Path) -> Pieces:
    """Return the rows of an open file.

    Raises:
        DataError: it is of no kind that can be read.
    """
    packed = 0
    while packing := _packing(file):
        file, packed = packing, packed + 1
        if packed > _LAYERS:
            raise DataError(f"{path}: is compressed more than {_LAYERS} times; unpack it.")
    head = _peeked(file)
    for beginning, what in _OTHERS.items():
        if head.lower().startswith(beginning):
            raise DataError(
                f"{path}: is {what}; expected JSONL, a JSON array, CSV or TSV (also in .gz or .zst), Parquet or Arrow."
            )
    for beginning, rows in _TABLES.items():
        if head.startswith(beginning):
            if packed:
                raise DataError(f"{path}: is a table in a compressed file; unpack it, as it is compressed by itself.")
            return Pieces(rows(file, path), False, False)
    if delimiter := DELIMITERS.get(uncompressed(path).suffix.lower()):
        return Pieces(separated_rows(file, path, delimiter), True, False)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return Pieces(array_rows(file, path), False, False)
    if _SPREAD.match(text):
        raise DataError(f"{path}: is one JSON object over several lines; write one object a line, or an array of them.")
    return Pieces(lines_of(file, path), True, not packed)


def _peeked(file: IO[bytes]) -> bytes:
    return cast(io.BufferedReader, file).peek(_BUFFER)


def _packing(file: IO[bytes]) -> IO[bytes] | None:
    """Return what is in a compressed file; None where it is none."""
    head = _peeked(file)
    if head.startswith(_GZIP):
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file, mode="rb")), _BUFFER)
    return io.BufferedReader(_Unpacked(file), _BUFFER) if _ZSTANDARD.match(head) else None


class _Unpacked(io.RawIOBase):
    """What is in a file of Zstandard; EOFError where that ends too early, which the library itself passes over."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, and return how many bytes were read; 0 at the end."""
        while not len(self._ready) and (packed := self._packed or self._file.read(_UNPACKED_AT_ONCE)):
            self._ready, self._packed = memoryview(self._unpack(packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        if not len(self._ready) and self._frame is not None:
            raise EOFError("it ends before its last frame does")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        import zstandard

        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        unpacked: bytes = self._frame.decompress(packed)
        return unpacked
