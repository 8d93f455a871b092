"""Finds the log that a path means, tells by its fields which program wrote it, and reads it as a `Run`."""

from __future__ import annotations

import math
from pathlib import Path

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.basics.strict_json import json_or_none
from tinker_utils.comparison.foreign import (
    flat_settings,
    is_cookbook_row,
    read_cookbook,
    read_text,
    read_trainer,
)
from tinker_utils.comparison.run import Curve, Run, curve, placed_on
from tinker_utils.config.loading import MAX_CONFIG
from tinker_utils.config.paths import exists, is_directory
from tinker_utils.config.yaml import parse_yaml
from tinker_utils.errors import ConfigError, MetricsError, RunDirectoryError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.metrics import MetricsReader, read_metrics
from tinker_utils.run.series import MetricsLog, Record, column
from tinker_utils.run.state import Provenance, RunState

LOG_NAMES = _METRICS, _TRAINER_STATE = "metrics.jsonl", "trainer_state.json"
_ADVICE = f"give a run directory, a {_METRICS} or a {_TRAINER_STATE}"
_LOSSES = {
    "tinker_utils": "train_loss or val_loss",
    "tinker-cookbook": "train_mean_nll, dpo_loss or …/nll",
    "Hugging Face Trainer": "loss, eval_loss or eval_…_loss",
}


def find_log(path: Path) -> Path:
    """Return the log that `path` means: itself, or that of a run directory (of several checkpoints, of the latest).

    Raises:
        MetricsError: there is no such file, or no log in the directory.
    """
    if not is_directory(path):
        if exists(path):
            return path
        raise MetricsError(f"{path}: there is no such run; {_ADVICE}.")
    found = path.glob(f"checkpoint-*/{_TRAINER_STATE}")
    states = {int(number): state for state in found if (number := state.parent.name.partition("-")[2]).isdecimal()}
    logs = [path / name for name in LOG_NAMES if (path / name).is_file()][:1]
    if states:
        logs.append(states[max(states)])
    if not logs:
        raise MetricsError(f"{path}: holds neither {_METRICS} nor {_TRAINER_STATE}; {_ADVICE}.")
    # A Trainer leaves its state in the directory at the end; where it goes on later, checkpoints are ahead of that.
    return max(logs, key=lambda log: log.stat().st_mtime_ns)


def read_log(path: Path, name: str) -> Run:
    """Read a log, whichever of the known programs wrote it, and the settings that stand beside it.

    Raises:
        MetricsError: it cannot be read, none of the programs writes such a file, or it holds no loss.
    """
    run = _read_any(path, name)
    if not len(run.train) and not len(run.valid):
        raise MetricsError(
            f"{path}: has no loss at any step ({run.made_by} logs losses as {_LOSSES[run.made_by]}); "
            "give a log that has some."
        )
    return run


def _read_any(path: Path, name: str) -> Run:
    """Read a log as the first record tells that any of the programs writes."""
    text = read_text(path)
    content = json_or_none(text)
    if isinstance(content, dict) and "log_history" in content:
        return read_trainer(content, path, name)
    for line in text.split("\n"):
        record = json_or_none(line)
        if isinstance(record, dict) and "type" in record:
            return _read_own(path, name)
        if isinstance(record, dict) and is_cookbook_row(record):
            return read_cookbook(text, path, name)
    if content is None and path.name == _TRAINER_STATE:
        raise MetricsError(f"{path}: is not whole, as while a Trainer writes it; give another one if it stays so.")
    raise MetricsError(f"{path}: has no record that tinker_utils, tinker-cookbook or a Trainer writes; {_ADVICE}.")


def _read_own(path: Path, name: str) -> Run:
    log = read_metrics(path)
    train = curve(*(log.train[name] for name in ("step", "train_loss", "tokens_seen", "cost_usd", "epoch")))
    steps, bits = (log.val_column(name).tolist() for name in ("step", "val_bits_per_byte"))
    end = next(reversed(log.events_of("end")), {"status": "early_stopped" if log.early_stop else None})
    return Run(
        name=name,
        made_by="tinker_utils",
        unit=log.loss_unit,
        train=train,
        valid=_evaluated(train, log.val),
        settings=_own_settings(path.with_name("config.yaml")) | _provenance(path.parent),
        epochs=int(train.epoch.max()) if len(train) else None,
        main_set=log.main_set,
        other_sets={name: _evaluated(train, records) for name, records in log.other_sets.items()},
        bits_per_byte={int(step): each for step, each in zip(steps, bits, strict=True) if math.isfinite(each)},
        ending=None if end.get("status") is None else one_sentence(str(end["status"])),
        unused_lines=log.skipped_lines + log.other_unit_records,
    )


def _evaluated(train: Curve, records: list[Record]) -> Curve:
    return placed_on(train, column(records, "step"), column(records, "val_loss"))


def _own_settings(path: Path) -> dict[str, str]:
    """Return all settings of a run's config.yaml, whichever version of the project wrote it."""
    if not path.is_file():
        return {}
    try:
        sections = parse_yaml(read_text(path, MAX_CONFIG))
    except ConfigError as error:
        raise MetricsError(f"{path}: {error}") from error
    if not isinstance(sections, dict) or len(sections) != 1:
        raise MetricsError(f"{path}: expected one section with a run's settings; restore the file, or remove it.")
    (settings,) = sections.values()
    return flat_settings(settings, levels=2)  # a group and its setting: the names in a mapping are the user's own


def _provenance(directory: Path) -> dict[str, str]:
    """Return what a run was made with, as far as its run.json tells: versions, code and data."""
    try:
        state = RunDirectory(directory).read_state() or RunState()
    except RunDirectoryError as error:
        raise MetricsError(str(error)) from error
    made_with = state.provenance or Provenance()
    known = {
        "python": made_with.python or None,
        **made_with.packages,
        "git commit": made_with.git_commit and made_with.git_commit[:12] + ("" if made_with.git_clean else ", changed"),
        "tokenizer": (state.rendering or {}).get("tokenizer", "")[:12],
        "tokenizer revision": made_with.tokenizer_revision,
        **{name: file.sha256[:12] for name, file in made_with.data.items()},
    }
    return {key: value for key, value in known.items() if value}


class LogReader:
    """Reads the log of a run directory or file as it grows, whichever of the known programs writes it.

    `about` says what another program's log is, or why it cannot be read; it is empty for one of this project.
    """

    def __init__(self, given: Path) -> None:
        self._given = given
        self._own = MetricsReader(given if given.name in LOG_NAMES else given / _METRICS)
        self.log = self._own.log
        self.about = ""

    @property
    def path(self) -> Path:
        """Return the log; the Trainer writes a new one with each checkpoint."""
        try:
            return find_log(self._given)
        except MetricsError:
            return self._own.path

    def poll(self) -> None:
        """Read what is new: a log of this project goes on, another one is read as a whole.

        What is missing or empty now, or cannot be read, leaves `log` as it was.
        """
        path = self.path
        if not exists(path) or not path.stat().st_size:  # not begun, or being written anew
            return
        if self._own.path != path or self._own.log.is_empty:  # what it has skipped may have been rewritten since
            self._own = MetricsReader(path)
        self._own.poll()
        try:
            if not self._own.log.is_empty or exists(path.with_name("run.json")):
                self.log, self.about = self._own.log, ""
            else:
                run = read_log(path, self._given.name)  # which says why, where there is nothing to show
                self.log, self.about = _as_metrics_log(run), f"{run.describe()}."
        except MetricsError as error:
            self.about = str(error)


def _as_metrics_log(run: Run) -> MetricsLog:
    log = MetricsLog(run.unit)
    sets = {run.main_set: run.valid, **run.other_sets}
    for kind, name, losses in (("train", "", run.train), *(("val", *each) for each in sets.items())):
        names = ("step", "epoch", f"{kind}_loss", "tokens_seen", "cost_usd")
        values = (losses.step, losses.epoch, losses.loss, losses.tokens, losses.dollars)
        for point in zip(*(each.tolist() for each in values), strict=True):
            known = {name: value for name, value in zip(names, point, strict=True) if not math.isnan(value)}
            log.add({"type": kind, "set": name, f"{kind}_loss": None, **known})
    return log
