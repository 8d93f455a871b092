"""Reads the logs of two other programs as a `Run`: tinker-cookbook's, and those of Hugging Face's Trainer.

The cookbook writes metrics.jsonl, a row each step. Its `train_mean_nll` and `test/nll` are sum(w·NLL) / sum(w), and by
default the weights of each example sum to 1, which makes them means of example means. `num_loss_tokens` is a sum of
weights, too: where it differs from `num_sequences`, weights were left raw, and the loss is per token. Steps and epochs
count from 0, and an evaluation precedes its step: the loss on the batch of step s is that of update s + 1 here, while
an evaluation at s, after s updates, has the same number here.

The Trainer keeps a `log_history` in trainer_state.json: `loss` is a mean over the steps since the last entry, and
`eval_loss` a mean of batch means. Tokens are there if it was asked to count them, or if TRL did, which begins again
from 0 where a run is resumed.

Both also log preferences (DPO), whose loss has a unit of its own, and reinforcement learning, which has rewards and no
loss: such a log is refused by its name. A likelihood beside a preference loss is named, and not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tinker_utils.basics.files import read_bounded
from tinker_utils.basics.strict_json import json_or_none
from tinker_utils.comparison.run import NO_POINTS, Curve, Run, curve, placed_on
from tinker_utils.config.changes import as_text
from tinker_utils.errors import MetricsError
from tinker_utils.run.figures import LossUnit
from tinker_utils.run.series import FloatArray, Record, as_float, column

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
_MAX_LOG = 512 << 20
# Keys of reinforcement learning: the cookbook's, then those of TRL.
_REWARDS = re.compile(r"(.*/)?(env|reward)/.+|reward|objective/.+")
# Keys of TRL's losses on preferences: of those on a policy, then of a reward model's.
_PREFERENCES = re.compile(r"(eval_(.+_)?)?(rewards/chosen|mean_reward)")
# What an evaluation's loss is called, with the name of its set.
_COOKBOOK_EVALUATION = re.compile(r"(.*)/nll", re.DOTALL)
_TRAINER_EVALUATION = re.compile(r"eval_(?:(.+)_)?loss", re.DOTALL)


def read_text(path: Path, max_bytes: int = _MAX_LOG) -> str:
    """Return what a file holds.

    Raises:
        MetricsError: it cannot be read, or is not text.
    """
    try:
        return read_bounded(path, max_bytes).decode("utf-8")
    except OSError as error:
        raise MetricsError(f"{path}: cannot be read ({error.strerror}); give a readable file.") from error
    except UnicodeDecodeError as error:
        raise MetricsError(f"{path}: is not UTF-8 text (byte {error.start + 1}); save the file as UTF-8.") from error


def is_cookbook_row(record: Record) -> bool:
    """Return whether one of the cookbook's trainers writes such a row."""
    known = {"train_mean_nll", "dpo_loss", "progress/done_frac"} & record.keys()
    return bool(known) or any(key.endswith("/nll") or ("/" in key and _REWARDS.fullmatch(key)) for key in record)


def _refuse_rewards(path: Path, records: Iterable[Record]) -> None:
    if any(_REWARDS.fullmatch(key) for record in records for key in record):
        raise MetricsError(
            f"{path}: is a log of reinforcement learning, which has rewards and no loss that could be drawn or "
            "compared; look at its rewards with the program that wrote it."
        )


def _evaluations(rows: Sequence[Record], key: re.Pattern[str], usual: str) -> dict[str, str]:
    """Return the key of each validation loss by the name of its set, with the main one first: the usual, if any."""
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name != usual)
    return {match[1] or "": name for name in names if (match := key.fullmatch(name))}


def _on_sets(train: Curve, rows: Sequence[Record], keys: Mapping[str, str]) -> tuple[str, Curve, dict[str, Curve]]:
    """Return the main set's name and losses, and the other sets; no points where there is none."""
    evaluated = ((name, key, [row for row in rows if key in row]) for name, key in keys.items())
    sets = [(name, placed_on(train, column(found, "step"), column(found, key))) for name, key, found in evaluated]
    (main, valid), *others = sets or [("", NO_POINTS)]
    return main, valid, dict(others)


def read_cookbook(text: str, path: Path, name: str) -> Run:
    """Read the content of the cookbook's metrics.jsonl, and config.json beside it."""
    lines = [json_or_none(line) for line in text.split("\n") if line.strip()]
    by_step: dict[float, Record] = {}
    # Rows without a step are summaries; what a later row for a step says counts, as the step was run again.
    for row in lines:
        if isinstance(row, dict) and _has_step(row):
            by_step[row["step"]] = by_step.get(row["step"], {}) | row
    rows = [by_step[step] for step in sorted(by_step)]
    loss = "dpo_loss" if any("dpo_loss" in row for row in rows) else "train_mean_nll"
    trained = [row for row in rows if loss in row]
    evaluations = _evaluations(rows, _COOKBOOK_EVALUATION, "test/nll")
    likelihoods = tuple(evaluations.values()) if loss == "dpo_loss" else ()  # which are not in its unit
    if not trained and not evaluations:
        _refuse_rewards(path, rows)
    totals = column(trained, "tokens/cumulative/trained")
    if not np.isfinite(totals).any():  # an older version, which gives no total
        totals = np.cumsum(column(trained, "num_tokens"))
    train = curve(
        column(trained, "step") + 1,
        column(trained, loss),
        totals,
        column(trained, "cost/cumulative_usd"),
        column(trained, "epoch") + 1,
    )
    main, valid, others = _on_sets(train, rows, {} if likelihoods else evaluations)
    return Run(
        name=name,
        made_by="tinker-cookbook",
        unit="preference" if loss == "dpo_loss" else _cookbook_unit(trained),
        train=train,
        valid=valid,
        settings=_renamed(path.with_name("config.json"), _COOKBOOK_SETTINGS),
        epochs=_epochs_begun(column(rows, "epoch") + 1),
        unused_lines=sum(not isinstance(line, dict) for line in lines),
        main_set=main,
        other_sets=others,
        not_shown=likelihoods,
    )


def _cookbook_unit(rows: list[Record]) -> LossUnit:
    weights, examples = column(rows, "num_loss_tokens"), column(rows, "num_sequences")
    known = np.isfinite(weights) & np.isfinite(examples)
    raw = known.any() and not np.allclose(weights[known], examples[known], rtol=1e-3)
    return "nats/token" if raw else "example means"


def read_trainer(state: Record, path: Path, name: str) -> Run:
    """Read the content of a trainer_state.json, and the adapter_config.json that PEFT leaves beside it."""
    history = state["log_history"] if isinstance(state["log_history"], list) else []
    entries = [entry for entry in history if isinstance(entry, dict) and _has_step(entry)]
    _refuse_rewards(path, entries)
    steps, losses, epochs = (column(entries, key) for key in ("step", "loss", "epoch"))
    tokens = _trainer_tokens(entries)
    trained = np.array(["loss" in entry for entry in entries], dtype=bool)
    settings = _renamed(path.with_name("adapter_config.json"), _PEFT_SETTINGS)
    if state.get("num_train_epochs"):
        settings["training.epochs"] = _as_text(state["num_train_epochs"])
    evaluations = _evaluations(entries, _TRAINER_EVALUATION, "eval_loss")
    main, valid, others = _on_sets(curve(steps, losses, tokens), entries, evaluations)
    return Run(
        name=name,
        made_by="Hugging Face Trainer",
        unit="preference" if any(_PREFERENCES.fullmatch(key) for row in entries for key in row) else "batch means",
        train=curve(steps[trained], losses[trained], tokens[trained], epochs=np.maximum(np.ceil(epochs), 1)[trained]),
        valid=valid,
        settings=settings,
        epochs=_epochs_begun(epochs),
        steps=as_float(state.get("global_step")),
        main_set=main,
        other_sets=others,
    )


def _trainer_tokens(entries: list[Record]) -> FloatArray:
    """Return the tokens trained on until each entry; a count that began anew goes on from what it was before."""
    counted = column(entries, "num_input_tokens_seen")
    for name in ("num_tokens", "eval_num_tokens"):
        counted = np.where(np.isfinite(counted), counted, column(entries, name))
    known = np.isfinite(counted)
    restarted = np.diff(counted[known], prepend=0.0) < 0
    counted[known] += np.cumsum(np.where(restarted, np.roll(counted[known], 1), 0.0))
    return counted


def flat_settings(settings: object, prefix: str = "", levels: float = math.inf) -> dict[str, str]:
    """Return nested settings as dotted key → value as text; what lies deeper than `levels` is one value."""
    if not isinstance(settings, dict) or not levels:
        return {prefix: _as_text(settings)}
    flat: dict[str, str] = {}
    for key, value in settings.items():
        flat |= flat_settings(value, f"{prefix}.{key}" if prefix else str(key), levels - 1)
    return flat


def _as_text(value: object) -> str:
    """Return a value in a cell's length, the same for 2e-4 and 0.0002, and for one list of names in any order."""
    if isinstance(value, list) and not any(isinstance(each, dict) for each in value):
        value = " ".join(sorted(map(str, value)))
    text = f"{value:g}" if isinstance(value, float) else as_text(value)
    return text if len(text) <= _MAX_SETTING else f"{text[:_MAX_SETTING]}…"


def _renamed(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Return settings of another program by this project's names; what has none here is left out."""
    if not path.is_file():
        return {}
    settings = json_or_none(read_text(path))
    if not isinstance(settings, dict):
        raise MetricsError(f"{path}: expected a JSON object with a run's settings; restore the file, or remove it.")
    theirs = flat_settings(settings)
    return {own: theirs[name] for name, own in names.items() if name in theirs}


def _has_step(record: Record) -> bool:
    step = as_float(record.get("step"))
    return step is not None and step >= 0


def _epochs_begun(epochs: FloatArray) -> int | None:
    known = epochs[np.isfinite(epochs)]
    return math.ceil(known.max()) if len(known) else None
