"""Logs a run while it trains: metrics.jsonl, train.log, and the status in run.json."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tinker_utils.basics.closing import Closing
from tinker_utils.basics.files import AppendedFile
from tinker_utils.basics.redaction import one_sentence
from tinker_utils.config.paths import as_path
from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import figures
from tinker_utils.run.directory import RunDirectory, writing
from tinker_utils.run.rollback import repair_last_line, roll_back_metrics, roll_back_samples
from tinker_utils.run.series import Record
from tinker_utils.run.state import Activity, RunState, Standing, Status

OnRecord = Callable[[Record], object]

# What train.log shows of an event, after the figures that it shows of train and val records.
_OF_EVENTS = ("monitor", "best_step", "best_val_loss", "start_val_loss", "kind", "status", "path", "reason", "message")


def encode_record(record: Mapping[str, Any]) -> str:
    """Return one line of JSON without its newline; NaN and infinity become null, named in the field `nonfinite`."""
    nonfinite = [key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    clean: Record = {key: None if key in nonfinite else value for key, value in record.items()}
    if nonfinite:
        clean["nonfinite"] = nonfinite
    return json.dumps(clean, ensure_ascii=False, allow_nan=False)


class MetricsWriter(AppendedFile):
    """Appends records to a metrics file, so that a reader sees each at once."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(as_path(path, "path"))

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; returns False where the file had been removed. Raises OSError when the disk refuses it."""
        return self.append(encode_record(record) + "\n")


class RunLogger(Closing):
    """Writes a run's records and status; use as a context manager.

    Args:
        run: the directory to write to.
        state: run.json as the run starts with it.
        on_record: called with each record after it was written. What it raises ends no run: it is noted, and the
            callback is not called again.

    Every method that writes raises RunDirectoryError where the disk refuses it, or the directory is gone.
    """

    def __init__(self, run: RunDirectory, state: RunState, on_record: OnRecord | None = None) -> None:
        self.state = state
        self._last_step = 0
        self.run = run
        self._on_record = on_record
        with writing(run.path):
            repair_last_line(run.metrics)
            self._metrics = MetricsWriter(run.metrics)
            self._log = AppendedFile(run.log)

    def record(self, record_type: str, step: int, **fields: Any) -> Record:
        """Append a record of that type to metrics.jsonl, and a line to train.log."""
        record: Record = {"type": record_type, "timestamp": round(time.time(), 3), "step": step, **fields}
        self.run.check_held()
        with writing(self.run.path):
            there = self._metrics.write(record)
            self._last_step = step
            self._log.append(log_line(record) + "\n")
        if not there:
            self.notice(
                "warning",
                step,
                "metrics.jsonl was removed during the run: what it held is lost, and it goes on from here.",
            )
        if self._on_record is not None:
            try:
                self._on_record(record)
            except Exception as error:
                self._on_record = None
                said = one_sentence(f"on_record raised {type(error).__name__} ({error}) and is no longer called.")
                self.notice("warning", step, said)
        return record

    def notice(self, kind: str, step: int, message: str) -> None:
        """Append a record that tells a person something: a warning, or what the run is doing."""
        self.record("notice", step, kind=kind, message=message)

    def roll_back(self, checkpoint: str | None, step: int) -> bool:
        """Cut metrics.jsonl and samples.jsonl back to a checkpoint and its step, or to the start where that is None.

        What came later belongs to steps that are run again. False if metrics.jsonl lacks the checkpoint's record.
        """
        with writing(self.run.path):
            self._metrics.close()
            try:
                known = roll_back_metrics(self.run.metrics, checkpoint, step)
            finally:
                self._metrics = MetricsWriter(self.run.metrics)
            # At the start nothing is left, what the base model wrote at step 0 included: it is asked again.
            roll_back_samples(self.run.samples, step if checkpoint else -1)
        return known

    def samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Append the generations of one evaluation to samples.jsonl, in one write: a kill leaves all or none."""
        now = round(time.time(), 3)
        lines = "".join(encode_record({"step": step, "timestamp": now, **each}) + "\n" for each in samples)
        with writing(self.run.samples), AppendedFile(self.run.samples) as file:
            file.append(lines)

    def sync(self) -> None:
        """Bring metrics.jsonl to the disk: what run.json is about to name must outlast a power cut there, too."""
        with writing(self.run.metrics):
            self._metrics.sync()

    def publish(self, **changes: Any) -> None:
        """Change fields of run.json."""
        for name, value in changes.items():
            setattr(self.state, name, value)
        self.run.write_state(self.state)

    def activity(self, state: str, detail: str) -> None:
        """Say in run.json what the run is doing now, in a word and in a sentence; nothing is written for no change."""
        now = self.state.activity
        if now is None or (now.state, now.detail) != (state, detail):
            self.publish(activity=Activity(state, round(time.time(), 3), detail))

    def end(self, status: Status, reason: str, step: int) -> None:
        """Write the run's last record, and how it ended into run.json."""
        progress = self.state.progress or Standing()
        names = ("best_step", "best_val_loss", "start_val_loss")
        best = {name: getattr(progress, name) for name in names}
        self.record("end", step, status=status, reason=reason, **best)
        self.sync()
        self.publish(status=status, reason=reason)
        self.activity("ended", reason)

    def abandon(self, status: Status, reason: str) -> None:
        """End a run that was broken off: at the last step recorded, and silent if the disk refuses even that."""
        # A ValueError: a rollback that the disk refused has left the file closed.
        with contextlib.suppress(RunDirectoryError, ValueError):
            self.end(status, reason, self._last_step)

    def close(self) -> None:
        """Close the files."""
        for file in (self._metrics, self._log):
            with contextlib.suppress(OSError):
                file.close()


def log_line(record: Record) -> str:
    """Return a record as train.log has it: one line for a person."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["timestamp"]))
    own = dict.fromkeys(figure.name for figure in (*figures.TRAIN, *figures.VAL) if figure.logged)
    sources = [name for name in record if name.startswith("train_loss/")]
    names = ("step", "set", *own, *sources, *_OF_EVENTS)
    parts = [f"{name}={one_sentence(_short(record[name]))}" for name in names if record.get(name) is not None]
    return f"{moment} {record['type']:<10} {' '.join(parts)}"


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
