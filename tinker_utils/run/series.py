"""The records of a run as series: its train series, its evaluations, its best point and its epochs.

A train record that carries `train_loss_total` is in nats per completion token; one without it comes from a run whose
losses were sums over a batch. The two units are kept apart, and never drawn or compared as one.

A val record belongs to the validation set that its `set` names; absent, to the one without a name. The set of the first
val record is the main one, which is watched; each further one has a curve of its own.
"""

from __future__ import annotations

import math
import reprlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinker_utils.run import figures
from tinker_utils.run.best import BaseModel, base_model, lowest
from tinker_utils.run.figures import LossUnit

Record = dict[str, Any]
FloatArray = NDArray[np.float64]

# Any of these in a val record says that its loss is per completion token.
_PER_TOKEN_VAL_FIELDS = ("val_loss_total", "completion_tokens", "val_loss_stderr", "perplexity")
# How many unusable lines are remembered one by one; further ones are only counted, as a wrong file may hold millions.
_REMEMBERED = 20
_SOURCE = "train_loss/"
# A column a source: those of a file that names ever new ones must not fill the memory.
MAX_SOURCES = 5


@dataclass(frozen=True)
class SkippedLine:
    """A line that could not be used, and why; `line` counts from 1."""

    line: int
    reason: str


class TrainSeries:
    """Train records as columns, so that a million of them fit in memory: step, time and the figures that are kept."""

    def __init__(self) -> None:
        own = {figure.name: figure.absent for figure in figures.TRAIN if figure.absent is not None}
        absent = {"step": math.nan, **own, "timestamp": math.nan}
        self._columns = {name: (array("d"), value) for name, value in absent.items()}
        self._fields: tuple[str, ...] = ()  # of the latest record: those of the next one are hardly ever others
        self.sources: list[str] = []  # of a mixture that is trained on: each has a column `train_loss/NAME`
        self.has_more_sources = False  # than have columns

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; a field that is absent or null takes its column's default."""
        if (fields := tuple(record)) != self._fields:
            self._fields = fields
            self._find_sources(fields)
        for name, (values, absent) in self._columns.items():
            value = as_float(record.get(name))
            values.append(absent if value is None else value)

    def _find_sources(self, fields: Iterable[str]) -> None:
        names = (name.removeprefix(_SOURCE) for name in fields if name.startswith(_SOURCE))
        new = [name for name in names if name and "/" not in name and name not in self.sources]
        room = MAX_SOURCES - len(self.sources)
        self.has_more_sources |= len(new) > room
        for source in new[:room]:
            self.sources.append(source)
            self._columns[_SOURCE + source] = array("d", [math.nan]) * len(self), math.nan

    def __len__(self) -> int:
        return len(self._columns["step"][0])

    def source(self, name: str) -> FloatArray:
        """Return the losses of a source, shape [records]; NaN where the source had no part in the steps."""
        return self[_SOURCE + name]

    def __getitem__(self, name: str) -> FloatArray:
        """Return column `name` as a float64 array of shape [records]; NaN where there is no value."""
        return np.array(self._columns[name][0], dtype=np.float64)

    def last(self, name: str, records: int) -> FloatArray:
        """Return the end of a column, of at most `records` records, without a copy of the whole."""
        return np.array(self._columns[name][0][-records:], dtype=np.float64)


@dataclass(eq=False)
class MetricsLog:
    """A metrics file, as far as it was read.

    `unit` is that of all its losses, where another program wrote them.
    """

    unit: LossUnit | None = None
    events: list[Record] = field(default_factory=list)
    skipped: list[SkippedLine] = field(default_factory=list)  # the first ones, as examples
    skipped_lines: int = 0
    last_train: Record | None = None
    current_unit: LossUnit | None = None  # of the latest train record
    _series: dict[LossUnit, TrainSeries] = field(default_factory=lambda: defaultdict(TrainSeries))
    # Evaluations and early stops with the unit of their losses; None until a train record tells.
    _losses: list[tuple[Record, LossUnit | None]] = field(default_factory=list)

    def add(self, record: object, line: int = 0) -> None:
        """Take in one decoded line, or note why it cannot be used."""
        problem = _problem(record)
        if problem or not isinstance(record, dict):
            self.skip(line, problem or "")
        elif record["type"] == "train":
            self.current_unit = self.unit or ("nats/token" if "train_loss_total" in record else "nats/batch")
            self._series[self.current_unit].append(record)
            self.last_train = record
        elif record["type"] in ("val", "early_stop"):
            per_token = any(name in record for name in _PER_TOKEN_VAL_FIELDS)
            unit: LossUnit | None = self.unit or ("nats/token" if per_token else self.current_unit)
            self._losses.append((record, unit))
        else:
            self.events.append(record)

    def skip(self, line: int, reason: str) -> None:
        """Note a line that cannot be used."""
        self.skipped_lines += 1
        if len(self.skipped) < _REMEMBERED:
            self.skipped.append(SkippedLine(line, reason))

    @property
    def loss_unit(self) -> LossUnit:
        """Return `nats/token`, unless every train record is sum-reduced, or another program wrote them."""
        summed = len(self._series["nats/batch"]) and not len(self._series["nats/token"])
        return self.unit or ("nats/batch" if summed else "nats/token")

    @property
    def train(self) -> TrainSeries:
        """Return the train records in `loss_unit`."""
        return self._series[self.loss_unit]

    @property
    def is_empty(self) -> bool:
        """Return whether nothing was read that a run leaves: no train or val record in `loss_unit`, and no end."""
        return not len(self.train) and not self.val and not self.events_of("end")

    @property
    def sets(self) -> dict[str, list[Record]]:
        """Return the val records in `loss_unit` by the name of their validation set, the main set first."""
        found: dict[str, list[Record]] = {}
        for record in self._in_unit("val"):
            name = record.get("set")
            found.setdefault(name if isinstance(name, str) else "", []).append(record)
        return found

    @property
    def val(self) -> list[Record]:
        """Return the val records of the main set, in `loss_unit`."""
        return next(iter(self.sets.values()), [])

    @property
    def main_set(self) -> str:
        """Return the name of the main set; empty if it has none."""
        return next(iter(self.sets), "")

    @property
    def other_sets(self) -> dict[str, list[Record]]:
        """Return the val records of the further sets, in `loss_unit`, by their names."""
        return dict(list(self.sets.items())[1:])

    @property
    def evaluations(self) -> int:
        """Return how many val records are in `loss_unit`, of all sets."""
        return len(self._in_unit("val"))

    @property
    def other_unit_records(self) -> int:
        """Return how many train and val records are in the other unit, and so are not shown."""
        vals = sum(1 for record, _ in self._losses if record["type"] == "val")
        return sum(map(len, self._series.values())) - len(self.train) + vals - self.evaluations

    def events_of(self, kind: str) -> list[Record]:
        """Return the records of one other type than train, val and early_stop, such as `notice` or `end`."""
        return [event for event in self.events if event["type"] == kind]

    @property
    def early_stop(self) -> Record | None:
        """Return the last early_stop record in `loss_unit`, or None."""
        return next(reversed(self._in_unit("early_stop")), None)

    def val_column(self, name: str, of: str | None = None) -> FloatArray:
        """Return field `name` of a set's val records, the main set's if `of` is None, shape [val records].

        It is NaN where the field is absent or null.
        """
        return column(self.val if of is None else self.sets.get(of, ()), name)

    def base_model(self) -> BaseModel | None:
        """Return the main set's evaluation before any training; None without one."""
        return base_model(self.val_column("step"), self.val_column("val_loss"))

    def best(self) -> tuple[float | None, int | None]:
        """Return (best validation loss, its step); an early_stop record wins over the computed minimum."""
        losses, steps = self.val_column("val_loss"), self.val_column("step")
        at = lowest(steps, losses)
        loss, step = (None, None) if at is None else (float(losses[at]), int(steps[at]))
        stop = self.early_stop or {}
        said, said_step = as_float(stop.get("best_val_loss")), as_float(stop.get("best_step"))
        if said is None or not math.isfinite(said):
            return loss, step
        if said_step is not None and math.isfinite(said_step):
            return said, int(said_step)
        # An older record does not say the step; its loss may have been rounded for people.
        points = zip(losses.tolist(), steps.tolist(), strict=True)
        alike = [(abs(value - said), at) for value, at in points if math.isclose(value, said, rel_tol=1e-3)]
        return said, int(min(alike)[1]) if alike else step

    def early_stop_step(self) -> int | None:
        """Return the step at which the run stopped early, or None."""
        step = as_float(self.early_stop.get("step")) if self.early_stop else None
        return int(step) if step is not None and math.isfinite(step) else None

    def epoch_starts(self) -> list[tuple[int, int]]:
        """Return (epoch, its first step) of each epoch after the first.

        A record is written every so many steps. Where all records fit epochs of one length, the first step follows
        from that length: the least that has each step in its epoch, which is exact as soon as one of the records, such
        as an evaluation, stands at an epoch's end. Otherwise it is the first step that was recorded.
        """
        recorded = self._recorded_starts()
        epochs = np.concatenate([self.train["epoch"], self.val_column("epoch")])
        steps = np.concatenate([self.train["step"], self.val_column("step")])
        known = (epochs >= 1) & (steps >= 1)
        length = np.ceil(steps[known] / epochs[known]).max(initial=0)
        fits = (steps[known] > length * (epochs[known] - 1)).all()
        return [(epoch, int(length) * (epoch - 1) + 1) for epoch, _ in recorded] if fits else recorded

    def epoch_boundaries(self) -> list[int]:
        """Return the first recorded step of each epoch after the first."""
        return [step for _, step in self._recorded_starts()]

    def _recorded_starts(self) -> list[tuple[int, int]]:
        epochs, steps = self.train["epoch"], self.train["step"]
        later = np.flatnonzero(np.diff(np.maximum.accumulate(epochs)) > 0) + 1
        return [(int(epochs[i]), int(steps[i])) for i in later.tolist()]

    def _in_unit(self, kind: str) -> list[Record]:
        # Before any train record the unit is not known, and so is that of the run as a whole.
        shown = (None, self.loss_unit)
        return [record for record, unit in self._losses if unit in shown and record["type"] == kind]


def column(records: Iterable[Record], name: str) -> FloatArray:
    """Return field `name` of records, shape [records]; NaN where it is absent or no number."""
    return np.array([as_float(record.get(name)) for record in records], dtype=np.float64)


def as_float(value: object) -> float | None:
    """Return `value` as a float where it is a number that fits in one (not a truth value), else None."""
    if isinstance(value, float):
        return value
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _is_finite(value: object) -> bool:
    number = as_float(value)
    return number is not None and math.isfinite(number)


def _problem(record: object) -> str | None:
    """Return why a decoded line is not a record, or None."""
    if not isinstance(record, dict):
        return f"is not a JSON object but {reprlib.repr(record)}"
    kind = record.get("type")
    if not isinstance(kind, str):
        return "has no `type`"
    if kind not in ("train", "val"):
        return None
    if not _is_finite(record.get("step")):
        return f"is a {kind} record without a `step`"
    loss = f"{kind}_loss"
    if loss not in record:
        return f"is a {kind} record without a `{loss}`"
    if record[loss] is not None and as_float(record[loss]) is None:
        return f"is a {kind} record whose `{loss}` is {reprlib.repr(record[loss])}"
    epoch = record.get("epoch")
    if epoch is not None and not _is_finite(epoch):
        return f"is a {kind} record whose `epoch` is {reprlib.repr(epoch)}"
    return None
