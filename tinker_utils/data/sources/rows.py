"""The rows of a file or a data set, as lines of JSON, in pieces of about a megabyte.

JSONL is read as it lies. The rows of anything else are written, as they come, to a temporary file without a name, from
which each can be read again: so every source is read once, from its beginning to its end.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tinker_utils.basics.closing import Closing
from tinker_utils.basics.files import MARK, regular
from tinker_utils.basics.redaction import first_line
from tinker_utils.data.sources.kinds import pieces_in
from tinker_utils.data.sources.naming import NamedData
from tinker_utils.data.sources.tables import named_rows
from tinker_utils.errors import DataError

_BUFFER = 1 << 20
# Lines after which a file must have more signs in rows than lines: a spreadsheet has half as many, all of them blank
# but for a few, and a row of CSV over many lines has a sign more for each.
_MAX_MOSTLY_BLANK = 2 << 20


class Rows(Closing):
    """Iterates, once, over pieces of a source: lists of lines, each of JSON and without its newline.

    A line is at the number, from 1, at which its row stands in the source; where it is blank, no row stands there.

    Args:
        source: a file, or a split of a data set.
        keep: whether rows are to be read again, by `descriptor`.

    Attributes:
        at: what comes before a row's number where its place is named.

    Raises:
        DataError: the source is missing, or of no kind that can be read; while it is read, it breaks off, or the disk
            on which rows are kept is full.
    """

    def __init__(self, source: Path | NamedData, keep: bool = False) -> None:
        self._place = str(source)
        self._file: IO[bytes] | None = None
        self._kept: IO[bytes] | None = None
        self._is_named, self._size, self._digest = isinstance(source, NamedData), 0, hashlib.sha256()
        try:
            if isinstance(source, NamedData):
                self._pieces, is_text, in_place = named_rows(source), False, False
            else:
                self._file = _opened(source)
                with self._reading():
                    self._pieces, is_text, in_place = pieces_in(self._file, source)
            if keep:
                self._kept = self._file if in_place else self._temporary()
        except BaseException:
            self.close()
            raise
        self.at = f"{self._place}:" if is_text else f"{self._place}: row "

    def __iter__(self) -> Iterator[list[bytes]]:
        number = signs = 0
        while True:
            with self._reading(f" behind row {number:,}" if number else ""):
                lines = next(self._pieces, None)
            if lines is None:
                return
            if self._kept is not None and self._kept is not self._file:
                self._keep(lines)
            number += len(lines)
            signs += sum(map(len, map(bytes.strip, filter(None, lines))))
            if number > max(signs, _MAX_MOSTLY_BLANK):
                raise DataError(f"{self.at}{number}: hardly any of so many lines holds a row; remove the blank ones.")
            yield lines

    @property
    def identity(self) -> tuple[int, bytes]:
        """Return how many bytes were kept of a data set, and their SHA-256; a file has its own."""
        return self._size, self._digest.digest()

    def descriptor(self) -> int:
        """Return a descriptor, the caller's own, from which all lines can be read again; each ends in a newline."""
        assert self._kept is not None
        return os.dup(self._kept.fileno())

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._file, self._kept):
            if file is not None:
                file.close()

    @contextmanager
    def _reading(self, how_far: str = "") -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # of files that hold anything
            raise DataError(
                f"{self._place}: cannot be read{how_far} ({type(error).__name__}: {first_line(str(error))}); it is "
                "damaged, or cut off: bring it here again."
            ) from error

    def _keep(self, lines: list[bytes]) -> None:
        assert self._kept is not None
        written = b"\n".join(lines) + b"\n"
        if self._is_named:
            self._digest.update(written)
        self._size += len(written)
        try:
            while written:  # a disk that is nearly full takes a part
                written = written[self._kept.write(written) :]
        except OSError as error:
            raise self._no_room(error) from error

    def _temporary(self) -> IO[bytes]:
        """Return a file of the user's own that has no name, and is gone when it is closed."""
        try:
            return tempfile.TemporaryFile(buffering=0, prefix=MARK, dir=_roomy())
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"{self._place}: its rows cannot be kept in {_roomy()} ({error.strerror}); free some space there, or set "
            "TMPDIR to a directory of yours on a disk that has room for all of them, unpacked."
        )


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb", buffering=_BUFFER, opener=regular)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); data.dir must hold train.jsonl, or train with the suffix of "
            "another kind."
        ) from error


def _roomy() -> str:
    """Return a directory for temporary files that is rather on a disk than in memory, as /tmp is on some systems."""
    known = os.environ.get("TMPDIR")
    return known or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())
