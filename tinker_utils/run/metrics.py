"""metrics.jsonl, read: as a whole or as it grows, old kinds too; and what was read, smoothed."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np

from tinker_utils.basics.strict_json import parse_json
from tinker_utils.config.paths import as_path
from tinker_utils.errors import MetricsError
from tinker_utils.run.figures import train_columns
from tinker_utils.run.series import FloatArray, MetricsLog

# A file is read in pieces of about this many bytes.
_PIECE = 1 << 19
# Weights below this one change no average: a float64 has 16 decimal places.
_NEGLIGIBLE = 1e-20
_REQUIRED = {"step": float, "train_loss": float}
_TOTAL = "train_loss_total"
_REFUSALS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class TrainRecords:
    """Consecutive train records of one unit, from line `begin` up to, but without, line `end`.

    `columns` are arrays of shape [end - begin] by name.
    """

    begin: int
    end: int
    columns: dict[str, FloatArray]


class TrainDecoder:
    """Decodes the columns called `names`, all if None, and always `step`: `msgspec` reads those and skips the rest.

    A line that it does not accept (another type, a gap, a torn or foreign line) is left to whoever asks, as it is.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._columns = {k: v for k, v in train_columns().items() if names is None or k in {*names, "step"}}
        wanted = [(name, float | None, None) for name in self._columns if name not in _REQUIRED]
        total = (_TOTAL, float | None | msgspec.UnsetType, msgspec.UNSET)
        kind = ("type", Literal["train"])
        line = msgspec.defstruct(
            "TrainLine", [kind, *_REQUIRED.items(), *wanted, total], kw_only=True, gc=False, frozen=True
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(line).decode

    def records(self, lines: Sequence[bytes]) -> Iterator[tuple[int, bytes] | TrainRecords]:
        """Yield what `lines` hold, in order: train records, and each line that is something else with its index."""
        rows: list[Any] = []
        decode, summed, unset = self._decode, False, msgspec.UNSET
        for i, line in enumerate(lines):
            try:
                # A field that is skipped is not checked for being UTF-8.
                row = decode(line) if line.isascii() else None
            except _REFUSALS:
                row = None
            if row is None or (row.train_loss_total is unset) is not summed:
                if rows:
                    yield self._taken(rows, i)
                    rows = []
                if row is None:
                    yield i, line
                    continue
                summed = not summed
            rows.append(row)
        if rows:
            yield self._taken(rows, len(lines))

    def _taken(self, rows: Sequence[Any], end: int) -> TrainRecords:
        columns = {name: _column(rows, name, absent) for name, absent in self._columns.items()}
        return TrainRecords(end - len(rows), end, columns)


def _column(rows: Sequence[Any], name: str, absent: float) -> FloatArray:
    values = np.fromiter(map(operator.attrgetter(name), rows), np.float64, len(rows))
    values[np.isnan(values)] = absent  # None became NaN, which is no JSON
    return values


class MetricsReader:
    """Reads a metrics file as it grows: every `poll` takes in what was added since the last one.

    `columns` names the train columns that are wanted, all of them by default: fewer are read faster.
    """

    def __init__(self, path: Path | str, columns: Collection[str] | None = None) -> None:
        self.path = as_path(path, "path")
        self.log = MetricsLog()
        self._decoder = TrainDecoder(columns)
        self._offset = 0
        self._lines = 0
        self._inode: int | None = None

    def poll(self) -> bool:
        """Read the complete lines that are new; True if there were any.

        A file that was replaced or cut back (a run that was resumed, or started anew) is read from its start again,
        into a new `log`. An incomplete last line waits for the next poll. A missing file is no error: the run may not
        have begun.
        """
        try:
            with self.path.open("rb") as file:
                changed = self._restart_if_replaced(file.fileno())
                file.seek(self._offset)
                for lines in _whole_lines(file):
                    self._take_lines(lines)
                    self._offset += len(lines)
                    changed = True
        except FileNotFoundError:
            return False
        return changed

    def take_rest(self) -> None:
        """Read an incomplete last line too: used when nobody writes to the file any more."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            rest = file.read()
        self._offset += len(rest)
        for line in rest.split(b"\n"):
            self._lines += 1
            self._take(line, self._lines)

    def _restart_if_replaced(self, descriptor: int) -> bool:
        stat = os.fstat(descriptor)
        replaced = self._inode not in (None, stat.st_ino) or stat.st_size < self._offset
        if replaced:
            self.log, self._offset, self._lines = MetricsLog(), 0, 0
        self._inode = stat.st_ino
        return replaced

    def _take_lines(self, text: bytes) -> None:
        lines = text.split(b"\n")[:-1]
        for found in self._decoder.records(lines):
            if isinstance(found, TrainRecords):
                self._take_records(found, lines)
            else:
                index, line = found
                self._take(line, self._lines + 1 + index)
        self._lines += len(lines)

    def _take_records(self, records: TrainRecords, lines: list[bytes]) -> None:
        try:
            last = parse_json(lines[records.end - 1])
        except ValueError:  # what it says beside the columns is no JSON: each line is judged by itself
            for index in range(records.begin, records.end):
                self._take(lines[index], self._lines + 1 + index)
        else:
            self.log.add_train_columns(records.columns, last)

    def _take(self, line: bytes, number: int) -> None:
        if not line.strip():
            return
        try:
            record = parse_json(line)
        except ValueError:
            self.log.skip(number, "is not JSON")
        else:
            self.log.add(record, number)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of `file` in pieces of whole lines; an incomplete last line is skipped."""
    while piece := file.read(_PIECE):
        piece += file.readline()
        if not piece.endswith(b"\n"):
            piece = piece[: piece.rfind(b"\n") + 1]
        if piece:
            yield piece


def read_metrics(path: Path | str, columns: Collection[str] | None = None) -> MetricsLog:
    """Read a whole metrics file; `columns` are the train columns that are wanted.

    Raises:
        MetricsError: the file is missing, cannot be read, or has no train or val records.
    """
    reader = MetricsReader(path, columns)
    try:
        reader.poll()
        reader.take_rest()
    except (FileNotFoundError, ValueError) as error:  # a ValueError: a NUL, or half of a surrogate pair, in the path
        raise MetricsError(f"{path}: there is no such metrics file; give the metrics.jsonl of a run.") from error
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read ({error.strerror}); give the metrics.jsonl of a run.") from error
    log = reader.log
    if not len(log.train) and not log.val:
        first = log.skipped[0] if log.skipped else None
        why = f"line {first.line} {first.reason}" if first else "it is empty"
        raise MetricsError(f"{path}: has no train or val records ({why}); give the metrics.jsonl of a run.")
    return log


def ema(values: FloatArray, smoothing: float = 0.9) -> FloatArray:
    """Return the exponential moving average of `values`, shape [n], without the start's bias.

    average_t = sum over i ≤ t of s^(t-i) · value_i / sum over i ≤ t of s^(t-i): the corrected average of Kingma and
    Ba, "Adam" (2015), section 3. NaN and infinity are skipped: the average keeps what it was, and is NaN until a
    first value. An average depends only on what came before it, so that the past of a curve stays as it was drawn.

    Raises:
        ValueError: `smoothing` is not in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
    known = np.isfinite(values)
    sums = _decaying_sums(values[known], smoothing)
    averages = sums / _decaying_sums(np.ones_like(sums), smoothing)
    smoothed: FloatArray = np.concatenate([[math.nan], averages])[np.cumsum(known)]
    return smoothed


def _decaying_sums(values: FloatArray, decay: float) -> FloatArray:
    """Return Σ decay^(t-i) · value_i over i ≤ t for each t, shape [n]; each pass doubles the number of terms."""
    sums = values.copy()
    terms, weight = 1, decay
    while terms < len(sums) and weight > _NEGLIGIBLE:
        sums[terms:] += weight * sums[:-terms]
        terms, weight = 2 * terms, weight * weight
    return sums
