"""Follows a run directory from outside: what the run is doing, how far it is, and a sentence that says so.

It reads what the loop writes and nothing else, so the run may train in this process, in another, or have ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from tinker_utils.basics.files import regular
from tinker_utils.basics.redaction import one_sentence, without_home
from tinker_utils.basics.strict_json import json_or_none
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.metrics import MetricsReader
from tinker_utils.run.series import MetricsLog, Record, as_float
from tinker_utils.run.state import Activity, RunState, Standing

ENDINGS = {
    "completed": "Completed",
    "early_stopped": "Stopped early",
    "stopped": "Stopped",
    "failed": "Failed",
}
_ONLY_METRICS = "There are metrics but no run.json, so the state of the run is not known."
_GONE = "The training process has ended: start the run again, and it resumes from its latest checkpoint."
_NOT_BEGUN = "Waiting for the run to begin."
# Records over which the speed is taken that tells the time left.
_RECENT = 50
# A gap between two records that is longer than this many usual ones was a pause, or a run cut off and resumed.
_PAUSE = 20
# Seconds without a word after which a training process may be dead.
_SILENCE = 120
_LATEST_SAMPLES = 3
_MAX_COUNT = 2**53  # counts beyond it are no counts
_SAMPLES_TAIL = 1 << 17


class Reader(Protocol):
    """Reads the log of a run as it grows; `about` is a sentence on a log of another program, or why it is not read."""

    about: str

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def log(self) -> MetricsLog: ...  # noqa: D102
    def poll(self) -> object: ...  # noqa: D102


@dataclass(frozen=True)
class RunStatus:
    """The status of a run; None where it is not known. Losses are in the log's `loss_unit`."""

    name: str
    sentence: str
    place: str = ""  # the run's directory, with `~` for the home directory
    live: bool = False  # it can be paused and stopped
    ended: bool = False
    gone: bool = False  # it has not ended, but the process that trained it has
    stop_asked: bool = False
    pause_asked: bool = False
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    seconds_left: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)  # of the latest train and val record, by name
    other_sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # those of further sets' val records
    expected_tokens: int | None = None
    expected_cost_usd: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evals_without_improvement: int | None = None
    patience: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Return whether nothing is added to the run any more, unless it is run again."""
        return self.ended or self.gone


class RunFollower:
    """Reads a run as it grows.

    Args:
        run: the run directory; it need not exist yet.
        reader: of its metrics, if they have another name or place, or another program's format.
        clock: seconds that nobody can set; tests pass their own.
    """

    def __init__(
        self, run: RunDirectory, reader: Reader | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run = run
        self.samples: list[Record] = []
        self._reader = reader or MetricsReader(run.metrics)
        self._latest: dict[str, Record] = {}  # evaluation of each set, the main one first
        self._best = self.log.best()
        self._state: RunState | None = None
        self._gone = False
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self._clock = clock
        self._heard = -math.inf  # when something was written last, by that clock
        self._problem: str | None = None  # of the latest look
        self._damaged: str | None = None  # of run.json, until it is written anew

    @property
    def log(self) -> MetricsLog:
        """Return the metrics as far as they were read."""
        return self._reader.log

    @property
    def is_foreign(self) -> bool:
        """Return whether another program wrote the log: it is read as a whole whenever it changes."""
        return bool(self._reader.about)

    def poll(self) -> None:
        """Read what is new. What cannot be read now is said in the status."""
        self._problem = None
        try:
            self._read_state()
            # One that ends lets go of the directory after it has said so.
            self._gone = self._runs and self.run.is_free()
            if self._gone:
                self._read_state()
                self._gone = self._runs
            if self._changed(self.run.samples):
                self.samples = _latest_samples(self.run.samples)
            if self._changed(self._reader.path):
                self._reader.poll()
                self._latest = {name: records[-1] for name, records in self.log.sets.items()}
                self._best = self.log.best()
        except OSError as error:
            self._problem = str(error)
            self._seen.clear()  # until it is read, it is tried again

    def _read_state(self) -> None:
        if self._changed(self.run.state):
            try:
                self._state, self._damaged = self.run.read_state(), None
            except RunDirectoryError as error:
                self._state, self._damaged = None, str(error)

    @property
    def _runs(self) -> bool:
        """Return whether run.json says that the run goes on."""
        return self._state is not None and self._state.status == "running"

    def status(self) -> RunStatus:
        """Return how the run stands."""
        state = self._state or RunState()
        plan, progress = state.plan, state.progress or Standing()
        train = self.log.last_train or {}
        step = _whole(train.get("step")) or progress.step or None
        total = plan.total_steps
        evaluated = next(iter(self._latest.values()), {})
        # Without run.json they come from another program or an older version, and nothing says that more will come.
        ended = state.status != "running" if self._state else not self.log.is_empty or self.is_foreign
        return RunStatus(
            name=self.run.path.resolve().name,
            place=without_home(str(self.run.path.absolute())),
            sentence=self._damaged or self._problem or self._sentence(),
            live=self._runs and not self._gone,
            ended=ended,
            gone=self._gone,
            stop_asked=self.run.stop_requested(),
            pause_asked=self.run.pause_requested(),
            step=step,
            total_steps=total,
            epoch=_whole(train.get("epoch")) or (progress.epoch if state.progress else None),
            epochs=plan.epochs,
            seconds_left=None if ended or self._gone else self._seconds_left(step, total),
            figures=_figures(train, evaluated, progress),
            other_sets={name: _known(record) for name, record in list(self._latest.items())[1:]},
            expected_tokens=plan.expected_tokens,
            expected_cost_usd=plan.expected_cost_usd,
            best_val_loss=self._best[0],
            best_step=self._best[1],
            evals_without_improvement=progress.evals_without_improvement if state.progress else None,
            patience=plan.patience,
            warnings=tuple(str(n.get("message")) for n in self.log.events_of("notice") if n.get("kind") == "warning"),
        )

    def _changed(self, path: Path) -> bool:
        try:
            stat = path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            seen = (0, 0, 0)
        changed = self._seen.get(path) != seen
        self._seen[path] = seen
        if changed:
            # A file may be from the future, where the clock was set back since; what it may say of time ends here.
            self._heard = max(self._heard, self._clock() - max(time.time() - seen[2] / 1e9, 0.0))
        return changed

    def _sentence(self) -> str:
        if self._state is None:
            return self._reader.about or (_NOT_BEGUN if self.log.is_empty else _ONLY_METRICS)
        if self._state.status != "running":
            return _sentence(ENDINGS[self._state.status], self._state.reason)
        if self._gone:
            return _GONE
        activity = self._state.activity or Activity("", time.time())
        doing = activity.state
        if doing == "stopping":
            return _sentence("Stopping", activity.detail)
        if self.run.stop_requested():
            return "Stop requested: finishing the steps in flight, then saving."
        if self.run.pause_requested() != (doing == "paused"):
            return "Resume requested." if doing == "paused" else "Pause requested: finishing the steps in flight."
        if doing not in ("paused", "waiting") and self._clock() - self._heard > _SILENCE:
            written = max(modified for _, _, modified in self._seen.values()) / 1e9
            return f"No update since {_clock(written)}: if the process has died, start the run again to resume."
        if doing == "paused":
            return f"Paused since {_clock(activity.since)}."
        return _sentence("", activity.detail or doing or "running")

    def _seconds_left(self, step: int | None, total: int | None) -> float | None:
        """Return the seconds until the last planned step, at the speed of the latest records.

        Pauses do not count, and neither do gaps in which the clock was set back, or far ahead.
        """
        moments, done = (self.log.train.last(name, _RECENT) for name in ("timestamp", "step"))
        known = (np.abs(moments) < _MAX_COUNT) & (np.abs(done) < _MAX_COUNT)
        gaps, steps = np.diff(moments[known]), np.diff(done[known])
        usable = (steps > 0) & (gaps >= 0)
        if step is None or total is None or not usable.any():
            return None
        # Of two gaps the lower is the usual one: the other may be a pause.
        usable &= gaps <= _PAUSE * np.quantile(gaps[usable], 0.5, method="lower")
        return float((total - step) * gaps[usable].sum() / steps[usable].sum())


def _sentence(beginning: str, rest: object) -> str:
    text = one_sentence(f"{beginning}: {rest}" if beginning and rest else beginning or str(rest))
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def _clock(moment: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):  # no time that a calendar has
        return "some time"


def _figures(train: Record, val: Record, progress: Standing) -> dict[str, float]:
    """Return the latest value of each figure that is known.

    A run that went back pays twice, and its records tell one history only: run.json may know of more dollars.
    """
    known = _known(val | train)
    if progress.tokens_seen:
        known.setdefault("tokens_seen", progress.tokens_seen)
    if progress.cost_usd is not None:
        known["cost_usd"] = max(progress.cost_usd, known.get("cost_usd", 0.0))
    return known


def _known(record: Record) -> dict[str, float]:
    numbers = ((name, as_float(value)) for name, value in record.items())
    return {name: value for name, value in numbers if value is not None and math.isfinite(value)}


def _whole(value: object) -> int | None:
    number = as_float(value)
    return int(number) if number is not None and abs(number) < _MAX_COUNT else None


def _latest_samples(path: Path) -> list[Record]:
    """Return the last samples that were taken at one step, at most three; lines that cannot be read are skipped."""
    try:
        with open(path, "rb", opener=regular) as file:
            file.seek(max(0, path.stat().st_size - _SAMPLES_TAIL))
            lines = file.read(_SAMPLES_TAIL).split(b"\n")  # as a run goes back by: a line may hold what else breaks one
    except OSError:
        return []
    samples = [sample for sample in map(json_or_none, lines) if isinstance(sample, dict)]
    return [sample for sample in samples if sample.get("step") == samples[-1].get("step")][:_LATEST_SAMPLES]
