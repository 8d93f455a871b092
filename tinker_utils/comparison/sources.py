"""Finds the log that a path means, tells by its fields which of three programs wrote it, and reads it as a `Run`.

The cookbook writes metrics.jsonl, a row each step. Its `train_mean_nll` and `test/nll` are sum(w·NLL) / sum(w), and by
default the weights of each example sum to 1, which makes them means of example means. `num_loss_tokens` is a sum of
weights, too: where it differs from `num_sequences`, weights were left raw, and the loss is per token. Steps and epochs
count from 0, and an evaluation precedes its step: the loss on the batch of step s is that of update s + 1 here, while
an evaluation at s, after s updates, has the same number here.

The Trainer keeps a `log_history` in trainer_state.json: `loss` is a mean over the steps since the last entry, and
`eval_loss` a mean of batch means. Tokens are there if it was asked to count them, or if TRL did, which begins again
from 0 where a run is resumed.

Both also log preferences (DPO), whose loss has a unit of its own, and reinforcement learning, which has rewards and no
loss: such a log is refused by its name. Of several validation losses one is read, and the others are named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.comparison.run import Run, curve, placed_on
from tinker_utils.config.settings import exists, is_directory
from tinker_utils.config.yaml import parse_yaml
from tinker_utils.errors import ConfigError, MetricsError, RunDirectoryError
from tinker_utils.run.figures import LossUnit
from tinker_utils.run.metrics import MetricsReader, read_metrics
from tinker_utils.run.series import FloatArray, MetricsLog, Record, as_float
from tinker_utils.run.state import Provenance, decode_state

LOG_NAMES = _METRICS, _TRAINER_STATE = "metrics.jsonl", "trainer_state.json"
_ADVICE = f"give a run directory, a {_METRICS} or a {_TRAINER_STATE}"
# Where the other programs keep what this project's configuration calls by the names on the right.
_COOKBOOK_SETTINGS = {
    "model_name": "model",
    "lora_rank": "lora.rank",
    "num_epochs": "training.epochs",
    "learning_rate": "training.learning_rate",
    "lr_schedule": "training.lr_schedule",
    "save_every": "training.checkpoint_interval_steps",
    "eval_every": "training.eval_interval_steps",
    "batch_size": "training.batch_size",
    "max_length": "training.max_seq_length",
    "dataset_builder.common_config.batch_size": "training.batch_size",
    "dataset_builder.common_config.max_length": "training.max_seq_length",
}
_PEFT_SETTINGS = {
    "base_model_name_or_path": "model",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.target_modules",
}
_MAX_SETTING = 300  # characters
# Keys of reinforcement learning: the cookbook's, then those of TRL.
_REWARDS = re.compile(r"(.*/)?(env|reward)/.+|reward|objective/.+")
_TRAINER_EVALUATION = re.compile(r"eval_(.+_)?loss")


def find_log(path: Path) -> Path:
    """Return the log that `path` means: itself, or that of a run directory (of several checkpoints, of the latest).

    Raises:
        MetricsError: there is no such file, or no log in the directory.
    """
    if not is_directory(path):
        if exists(path):
            return path
        raise MetricsError(f"{path}: there is no such run; {_ADVICE}.")
    for name in LOG_NAMES:
        if (path / name).is_file():
            return path / name
    found = path.glob(f"checkpoint-*/{_TRAINER_STATE}")
    states = {int(number): state for state in found if (number := state.parent.name.partition("-")[2]).isdecimal()}
    if not states:
        raise MetricsError(f"{path}: holds neither {_METRICS} nor {_TRAINER_STATE}; {_ADVICE}.")
    return states[max(states)]


def read_log(path: Path, name: str) -> Run:
    """Read a log, whichever of the known programs wrote it, and the settings that stand beside it.

    Raises:
        MetricsError: it cannot be read, none of the programs writes such a file, or it holds no loss.
    """
    run = _reader_of(path)(path, name)
    if not len(run.train) and not len(run.valid):
        raise MetricsError(f"{path}: has no loss at any step; {_ADVICE}.")
    return run


def _reader_of(path: Path) -> Callable[[Path, str], Run]:
    """Return what reads this log, decided by the first record that any of the programs writes."""
    text = _read_text(path)
    for line in text.split("\n"):
        record = _decoded(line)
        if isinstance(record, dict) and "type" in record:
            return _read_own
        if isinstance(record, dict) and _is_cookbook_row(record):
            return _read_cookbook
    content = _decoded(text)
    if isinstance(content, dict) and "log_history" in content:
        return _read_trainer
    raise MetricsError(f"{path}: has no record that tinker_utils, tinker-cookbook or a Trainer writes; {_ADVICE}.")


def _read_own(path: Path, name: str) -> Run:
    log = read_metrics(path)
    train = curve(*(log.train[column] for column in ("step", "train_loss", "tokens_seen", "cost_usd")))
    epochs = log.train["epoch"]
    end = next(reversed(log.events_of("end")), {"status": "early_stopped" if log.early_stop else None})
    return Run(
        name=name,
        made_by="tinker_utils",
        unit=log.loss_unit,
        train=train,
        valid=placed_on(train, log.val_column("step"), log.val_column("val_loss")),
        settings=_own_settings(path.with_name("config.yaml")) | _provenance(path.with_name("run.json")),
        epochs=int(epochs.max()) if len(epochs) else None,
        ending=None if end.get("status") is None else one_sentence(str(end["status"])),
        unused_lines=log.skipped_lines + log.other_unit_records,
    )


def _own_settings(path: Path) -> dict[str, str]:
    """Return all settings of a run's config.yaml, whichever version of the project wrote it."""
    if not path.is_file():
        return {}
    try:
        sections = parse_yaml(_read_text(path))
    except ConfigError as error:
        raise MetricsError(f"{path}: {error}") from error
    if not isinstance(sections, dict) or len(sections) != 1:
        raise MetricsError(f"{path}: expected one section with a run's settings; restore the file, or remove it.")
    (settings,) = sections.values()
    return _flat_settings(settings)


def _provenance(path: Path) -> dict[str, str]:
    """Return what a run was made with, as far as its run.json tells: versions, code and data."""
    if not path.is_file():
        return {}
    try:
        made_with = decode_state(path.read_bytes(), path).provenance or Provenance()
    except (OSError, RunDirectoryError) as error:
        raise MetricsError(str(error)) from error
    known = {
        "python": made_with.python or None,
        **made_with.packages,
        "git commit": made_with.git_commit and made_with.git_commit[:12] + ("" if made_with.git_clean else ", changed"),
        "tokenizer revision": made_with.tokenizer_revision,
        **{name: file.sha256[:12] for name, file in made_with.data.items()},
    }
    return {key: value for key, value in known.items() if value}


def _read_text(path: Path) -> str:
    """Return what a file holds.

    Raises:
        MetricsError: it cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read ({error.strerror}); give a readable file.") from error
    except UnicodeDecodeError as error:
        raise MetricsError(f"{path}: is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8.") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair, in the path
        raise MetricsError(f"{path}: there is no such file; give a file that can be read.") from error


def _decoded(text: str) -> Any:
    """Return what a JSON text says; None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def _is_cookbook_row(record: Record) -> bool:
    """Return whether one of the cookbook's trainers writes such a row."""
    known = {"train_mean_nll", "dpo_loss"} & record.keys()
    return bool(known) or any(key.endswith("/nll") or ("/" in key and _REWARDS.fullmatch(key)) for key in record)


def _refuse_rewards(path: Path, records: Iterable[Record]) -> None:
    if any(_REWARDS.fullmatch(key) for record in records for key in record):
        raise MetricsError(
            f"{path}: is a log of reinforcement learning, which has rewards and no loss that could be drawn or "
            "compared; look at its rewards with the program that wrote it."
        )


def _chosen(names: Iterable[str], usual: str) -> tuple[str, ...]:
    """Return names of validation losses, each once, with the one to read first: the usual one, where it is there."""
    return tuple(sorted(dict.fromkeys(names), key=lambda name: name != usual))


def _read_cookbook(path: Path, name: str) -> Run:
    """Read the cookbook's metrics.jsonl, and config.json beside it."""
    lines = [_decoded(line) for line in _read_text(path).split("\n") if line.strip()]
    # Rows without a step are summaries; of rows for one step the last one counts, as the step was run again.
    by_step = {row["step"]: row for row in lines if isinstance(row, dict) and _has_step(row)}
    rows = [by_step[step] for step in sorted(by_step)]
    loss = "dpo_loss" if any("dpo_loss" in row for row in rows) else "train_mean_nll"
    trained = [row for row in rows if loss in row]
    evaluations = _chosen((key for row in rows for key in row if key.endswith("/nll")), "test/nll")
    evaluated = [row for row in rows if evaluations[0] in row] if evaluations and loss != "dpo_loss" else []
    if not trained and not evaluated:
        _refuse_rewards(path, rows)
    totals = _column(trained, "tokens/cumulative/trained")
    if not np.isfinite(totals).any():  # an older version, which gives no total
        totals = np.cumsum(_column(trained, "num_tokens"))
    train = curve(
        _column(trained, "step") + 1,
        _column(trained, loss),
        totals,
        _column(trained, "cost/cumulative_usd"),
    )
    return Run(
        name=name,
        made_by="tinker-cookbook",
        unit="preference" if loss == "dpo_loss" else _cookbook_unit(trained),
        train=train,
        valid=placed_on(train, _column(evaluated, "step"), _column(evaluated, next(iter(evaluations), ""))),
        settings=_renamed(path.with_name("config.json"), _COOKBOOK_SETTINGS),
        epochs=_epochs_begun(_column(rows, "epoch") + 1),
        unused_lines=sum(not isinstance(line, dict) for line in lines),
        evaluations=evaluations,
    )


def _cookbook_unit(rows: list[Record]) -> LossUnit:
    weights, examples = _column(rows, "num_loss_tokens"), _column(rows, "num_sequences")
    known = np.isfinite(weights) & np.isfinite(examples)
    raw = known.any() and not np.allclose(weights[known], examples[known], rtol=1e-3)
    return "nats/token" if raw else "example means"


def _read_trainer(path: Path, name: str) -> Run:
    """Read a trainer_state.json, and the adapter_config.json that PEFT leaves beside it."""
    state = _decoded(_read_text(path))
    history = state["log_history"] if isinstance(state["log_history"], list) else []
    entries = [entry for entry in history if isinstance(entry, dict) and _has_step(entry)]
    trained = [entry for entry in entries if "loss" in entry]
    names = (key for entry in entries for key in entry if _TRAINER_EVALUATION.fullmatch(key))
    evaluations = _chosen(names, "eval_loss")
    evaluated = [entry for entry in entries if evaluations and evaluations[0] in entry]
    _refuse_rewards(path, entries)
    train = curve(_column(trained, "step"), _column(trained, "loss"), _trainer_tokens(trained))
    settings = _renamed(path.with_name("adapter_config.json"), _PEFT_SETTINGS)
    if state.get("num_train_epochs"):
        settings["training.epochs"] = _as_text(state["num_train_epochs"])
    return Run(
        name=name,
        made_by="Hugging Face Trainer",
        unit="preference" if any("rewards/chosen" in entry for entry in entries) else "batch means",
        train=train,
        valid=placed_on(train, _column(evaluated, "step"), _column(evaluated, next(iter(evaluations), ""))),
        settings=settings,
        epochs=_epochs_begun(_column(entries, "epoch")),
        evaluations=evaluations,
        steps=as_float(state.get("global_step")),
    )


def _trainer_tokens(entries: list[Record]) -> FloatArray:
    """Return the tokens trained on until each entry; a count that began anew goes on from what it was before."""
    counted = _column(entries, "num_input_tokens_seen")
    if not np.isfinite(counted).any():
        counted = _column(entries, "num_tokens")
    known = np.isfinite(counted)
    restarted = np.diff(counted[known], prepend=0.0) < 0
    counted[known] += np.cumsum(np.where(restarted, np.roll(counted[known], 1), 0.0))
    return counted


class LogReader:
    """Reads the log of a run directory or file as it grows, whichever of the known programs writes it.

    `about` says what another program's log is; it is empty for one of this project.
    """

    def __init__(self, given: Path) -> None:
        self._given = given
        self._own = MetricsReader(given / _METRICS if is_directory(given) or not exists(given) else given)
        self._own_inode: int | None = None  # of a log that was found to be this project's
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

        Raises:
            MetricsError: it cannot be read, or none of the programs writes such a file; `log` stays as it was.
        """
        path = self.path
        inode = path.stat().st_ino if exists(path) and path.stat().st_size else None
        if inode == self._own_inode or inode is None or _reader_of(path) is _read_own:
            self._own_inode = inode
            self._own.poll()
            self.log = self._own.log
        else:
            run = read_log(path, self._given.name)
            self.log, self.about = _as_metrics_log(run), f"{run.describe()}."


def _as_metrics_log(run: Run) -> MetricsLog:
    log = MetricsLog(run.unit)
    for kind, losses in (("train", run.train), ("val", run.valid)):
        values = (losses.step, losses.loss, losses.tokens, losses.dollars)
        for step, loss, tokens, usd in zip(*(each.tolist() for each in values), strict=True):
            log.add({"type": kind, "step": step, f"{kind}_loss": loss, "tokens_seen": tokens, "cost_usd": usd})
    return log


def _flat_settings(settings: object, prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted key → value as text."""
    if not isinstance(settings, dict):
        return {prefix: _as_text(settings)}
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= _flat_settings(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _as_text(value: object) -> str:
    """Return a value in a cell's length, the same for 2e-4 and 0.0002, and for one list in any order."""
    if isinstance(value, list):
        text = " ".join(sorted(map(str, value)))
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= _MAX_SETTING else f"{text[:_MAX_SETTING]}…"


def _renamed(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return settings of another program by this project's names; what has none here is left out."""
    if not path.is_file():
        return {}
    settings = _decoded(_read_text(path))
    if not isinstance(settings, dict):
        raise MetricsError(f"{path}: expected a JSON object with a run's settings; restore the file, or remove it.")
    theirs = _flat_settings(settings)
    return {own: theirs[name] for name, own in names.items() if name in theirs}


def _has_step(record: Record) -> bool:
    step = as_float(record.get("step"))
    return step is not None and step >= 0


def _column(records: Iterable[Record], name: str) -> FloatArray:
    """Return a field of records, shape [records]; NaN where it is absent or no number."""
    return np.array([as_float(record.get(name)) for record in records], dtype=np.float64)


def _epochs_begun(epochs: FloatArray) -> int | None:
    known = epochs[np.isfinite(epochs)]
    return math.ceil(known.max()) if len(known) else None
