"""Keeps what was rendered on disk, so that no epoch and no run renders it again.

A cache is a directory of parts, each an append-only file of blocks that one process writes and any number read. So
nothing is ever locked, and a process that is killed leaves at worst an incomplete last block, which is not read.

    block = magic, rows, words, checksum of the table     4 x uint32
            row, words, completion tokens                 3 x uint32 for each row: the table
            checksum, words                               uint32 and `words` x uint32 for each row

A word is a token's id, with the highest bit set on completion tokens. A row whose checksum fails counts as missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_MAGIC = 0x314B5554
_WORD = np.dtype("<u4")
_NOWHERE = -1
_HEADER_BYTES = 4 * _WORD.itemsize
_SUFFIX = ".part"
_MAX_PARTS = 200  # each takes a file handle; more come only of as many interrupted first epochs
_MAX_BYTES = 20 << 30  # of all caches together: the least recently used go first
_LEAVE_FREE = 1 << 30  # bytes on the disk


def cache_root() -> Path:
    """Return where caches are kept: $TINKER_UTILS_CACHE, or else `tinker_utils` in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TINKER_UTILS_CACHE"):
        return Path(own) / "rendered"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinker_utils" / "rendered"


class TokenCache:
    """Rendered rows of one file, as rendered in one way.

    Args:
        rows: how many rows the file has.
        key: what names the file's content and the way of rendering; None keeps the rows for as long as this object.

    Attributes:
        lengths: words of each row, uint32, shape [rows]; 0 where it was never put.
        completion_tokens: completion tokens of each row, uint32, shape [rows].
        refused: whether the disk has refused a row; it is not asked again.
    """

    def __init__(self, rows: int, key: str | None) -> None:
        self.lengths: Words = np.zeros(rows, np.uint32)
        self.completion_tokens: Words = np.zeros(rows, np.uint32)
        self.refused = False
        self._places = np.full(rows, _NOWHERE, np.int64)
        self._parts = np.zeros(rows, np.uint8)
        self._files: list[int] = []
        self._directory = None if key is None else cache_root() / key
        self._own: int | None = None  # the part that this process writes, once there is something to write
        weakref.finalize(self, _close_all, self._files)
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._open_parts(self._directory)

    def missing(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return those of `rows` that are not here."""
        absent: NDArray[np.int32] = rows[self._places[rows] == _NOWHERE]
        return absent

    def get(self, row: int) -> Words | None:
        """Return the words of a row; None where it is missing, or was damaged."""
        place, length = int(self._places[row]), int(self.lengths[row])
        if place == _NOWHERE:
            return None
        with contextlib.suppress(OSError):
            content = os.pread(self._files[self._parts[row]], (length + 1) * _WORD.itemsize, place)
            words = np.frombuffer(content, _WORD)
            if len(words) == length + 1 and _checksum(words[1:]) == words[0]:
                return words[1:]
        self._places[row] = _NOWHERE
        return None

    def put(self, rows: Sequence[int], words: Sequence[Words], completion_tokens: Sequence[int]) -> bool:
        """Keep rows, each with one word at least; False where the disk refuses them, and they stay missing."""
        table = np.array([rows, [len(each) for each in words], completion_tokens], _WORD).T.copy()
        parts = [part for each in words for part in (_WORD.type(_checksum(each)).tobytes(), each.tobytes())]
        header = np.array([_MAGIC, len(rows), sum(map(len, words)) + len(words), _checksum(table)], _WORD)
        try:
            if self.refused:
                raise OSError("the disk has refused earlier rows")
            part = self._part_to_write()
            start = os.lseek(self._files[part], 0, os.SEEK_END)
            _write(self._files[part], b"".join([header.tobytes(), table.tobytes(), *parts]))
        except OSError:
            self.refused = True
            self.lengths[table[:, 0]], self.completion_tokens[table[:, 0]] = table[:, 1], table[:, 2]
        else:
            self._enter(part, start + _HEADER_BYTES + table.nbytes, table)
        return not self.refused

    def _open_parts(self, directory: Path) -> None:
        parts = sorted(directory.glob(f"*{_SUFFIX}"))[:_MAX_PARTS]
        for path in parts:
            self._files.append(os.open(path, os.O_RDONLY))
            self._read_tables(len(self._files) - 1)
        if parts:
            os.utime(directory)

    def _read_tables(self, part: int) -> None:
        """Enter the rows of all complete blocks of a part."""
        file, start = self._files[part], 0
        size = os.fstat(file).st_size
        while start + _HEADER_BYTES <= size:
            magic, rows, words, checksum = np.frombuffer(os.pread(file, _HEADER_BYTES, start), _WORD).tolist()
            data = start + _HEADER_BYTES + 3 * rows * _WORD.itemsize
            end = data + words * _WORD.itemsize
            if magic != _MAGIC or end > size:
                return
            table = np.frombuffer(os.pread(file, data - start - _HEADER_BYTES, start + _HEADER_BYTES), _WORD)
            if _checksum(table) != checksum:
                return
            self._enter(part, data, table.reshape(-1, 3))
            start = end

    def _enter(self, part: int, data: int, table: Words) -> None:
        rows, lengths = table[:, 0], table[:, 1].astype(np.int64)
        sizes = (lengths + 1) * _WORD.itemsize
        known = rows < len(self.lengths)
        rows, starts = rows[known], (data + np.cumsum(sizes) - sizes)[known]
        self.lengths[rows], self.completion_tokens[rows] = lengths[known], table[known, 2]
        self._parts[rows] = part
        self._places[rows] = starts  # last: another thread may be looking

    def _part_to_write(self) -> int:
        directory = self._directory
        if shutil.disk_usage(_existing(directory)).free < _LEAVE_FREE:
            raise OSError("the disk is nearly full")
        if self._own is None:
            if directory is None:
                self._files.append(_anonymous())
            else:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _prune(directory)
                name = directory / f"{secrets.token_hex(8)}{_SUFFIX}"
                self._files.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._own = len(self._files) - 1
        return self._own


def _existing(directory: Path | None) -> Path:
    """Return the directory itself, or the closest one above it that exists."""
    place = directory or Path(tempfile.gettempdir())
    return next(each for each in (place, *place.parents) if each.exists())


def _anonymous() -> int:
    """Return a file without a name, which is gone when it is closed."""
    file, name = tempfile.mkstemp()
    Path(name).unlink()
    return file


def _checksum(words: Words) -> int:
    return zlib.crc32(words.tobytes())


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _prune(keep: Path) -> None:
    """Remove the caches that were not used for the longest time, as long as all take too much; readers keep theirs."""
    others = [each for each in keep.parent.iterdir() if each.is_dir() and each != keep]
    sizes = {each: sum(part.stat().st_size for part in each.iterdir()) for each in others}
    excess = sum(sizes.values()) - _MAX_BYTES
    for each in sorted(others, key=lambda other: other.stat().st_mtime):
        if excess <= 0:
            return
        shutil.rmtree(each, ignore_errors=True)
        excess -= sizes[each]


def _close_all(files: list[int]) -> None:
    for file in files:
        os.close(file)
