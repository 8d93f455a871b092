"""metrics.jsonl, read: as a whole or as it grows, old kinds too; and what was read, smoothed."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np

from tinker_utils.basics.files import regular
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.config.paths import as_path
from tinker_utils.errors import MetricsError
from tinker_utils.run.series import FloatArray, MetricsLog

# A longer line, or a file with more bytes, is no metrics file: somebody may have given anything.
_MAX_LINE, _MAX_FILE = 16 << 20, 2 << 30
# Weights below this one change no average: a float64 has 16 decimal places.
_NEGLIGIBLE = 1e-20


class MetricsReader:
    """Reads a metrics file as it grows: every `poll` takes in what was added since the last one."""

    about = ""

    def __init__(self, path: Path | str) -> None:
        self.path = as_path(path, "path")
        self.log = MetricsLog()
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
            return self.read()
        except FileNotFoundError:
            return False

    def read(self, incomplete: bool = False) -> bool:
        """Read as `poll` does; `incomplete` takes in the last line as it is, as nobody writes to the file any more.

        Raises:
            OSError: the file is missing, cannot be read, or is nothing that a run writes.
        """
        with open(self.path, "rb", opener=regular) as file:
            stat = os.fstat(file.fileno())
            if stat.st_size > _MAX_FILE:
                raise OSError(errno.EFBIG, f"has more than {_MAX_FILE:,} bytes", str(self.path))
            changed = self._inode not in (None, stat.st_ino) or stat.st_size < self._offset
            if changed:
                self.log, self._offset, self._lines = MetricsLog(), 0, 0
            self._inode = stat.st_ino
            file.seek(self._offset)
            while line := file.readline(_MAX_LINE):
                if len(line) == _MAX_LINE:
                    where = f"line {self._lines + 1:,} has {_MAX_LINE:,} bytes or more"
                    raise OSError(errno.EFBIG, where, str(self.path))
                if not (incomplete or line.endswith(b"\n")):
                    break
                self._take(line)
                self._offset += len(line)
                changed = True
        return changed

    def _take(self, line: bytes) -> None:
        self._lines += 1
        if not line.strip():
            return
        try:
            record = parse_json(line)
        except ValueError:
            self.log.skip(self._lines, "is not JSON")
        else:
            self.log.add(record, self._lines)


def read_metrics(path: Path | str) -> MetricsLog:
    """Read a whole metrics file.

    Raises:
        MetricsError: the file is missing, cannot be read, or has no train or val records of a run that has not ended.
    """
    reader = MetricsReader(path)
    try:
        reader.read(incomplete=True)
    except FileNotFoundError as error:
        raise MetricsError(f"{path}: there is no such metrics file; give the metrics.jsonl of a run.") from error
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read ({error.strerror}); give the metrics.jsonl of a run.") from error
    log = reader.log
    if log.is_empty:
        first = log.skipped[0] if log.skipped else None
        why = f"line {first.line} {first.reason}" if first else "it has others only" if log.events else "it is empty"
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
