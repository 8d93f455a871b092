"""Decodes the train lines of a metrics file: `msgspec` reads the wanted numbers of each, and passes over the rest.

A line that it does not accept (another type, a gap, a torn or foreign line) is left to whoever asks, as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from tinker_utils.metrics_log import TRAIN_COLUMNS, FloatArray

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
    """Decodes the columns called `names`, and always `step`."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = [name for name in TRAIN_COLUMNS if name in {*names, "step"}]
        wanted = [(name, float | None, None) for name in self._names if name not in _REQUIRED]
        total = (_TOTAL, float | None | msgspec.UnsetType, msgspec.UNSET)
        kind = ("type", Literal["train"])
        line = msgspec.defstruct(
            "TrainLine", [kind, *_REQUIRED.items(), *wanted, total], kw_only=True, gc=False, frozen=True
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(line).decode

    def records(self, lines: Sequence[bytes]) -> Iterator[tuple[int, bytes] | TrainRecords]:
        """What `lines` hold, in their order: train records, and each line that is something else with its index."""
        rows: list[Any] = []
        decode, summed, unset = self._decode, False, msgspec.UNSET
        for i, line in enumerate(lines):
            try:
                # A field that is passed over is not checked for being UTF-8.
                row = decode(line) if line.isascii() else None
            except _REFUSALS:
                row = None
            if row is None or (row.train_loss_total is unset) is not summed:
                if rows:
                    yield self._columns(rows, i)
                    rows = []
                if row is None:
                    yield i, line
                    continue
                summed = not summed
            rows.append(row)
        if rows:
            yield self._columns(rows, len(lines))

    def _columns(self, rows: Sequence[Any], end: int) -> TrainRecords:
        return TrainRecords(end - len(rows), end, {name: _column(rows, name) for name in self._names})


def _column(rows: Sequence[Any], name: str) -> FloatArray:
    values = np.fromiter(map(operator.attrgetter(name), rows), np.float64, len(rows))
    values[np.isnan(values)] = TRAIN_COLUMNS[name]  # None became NaN, which is no JSON
    return values
