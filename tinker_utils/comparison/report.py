"""One run in tables: its settings, its evaluations, what it cost, and what its model answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinker_utils.basics.table import Table
from tinker_utils.comparison.table import UNKNOWN
from tinker_utils.config.changes import as_text
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.plan.cost import Prices, token_cost
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.figures import UNIT_WORDS, dollars
from tinker_utils.run.series import MetricsLog, Record, column
from tinker_utils.run.state import RunState, Spent
from tinker_utils.service.sampling import Sample


def settings_table(config: TrainingConfig, file: TrainingConfig) -> Table:
    """Tabulate all settings, and beside those that differ what the configuration file says."""
    values, in_file = config.to_flat_dict(), file.to_flat_dict()
    rows = tuple(
        (key, as_text(value), "" if value == in_file[key] else as_text(in_file[key])) for key, value in values.items()
    )
    return Table(("setting", "value", "in the file, where it differs"), rows, "Settings of the run", words=True)


def evaluation_table(log: MetricsLog) -> Table:
    """Tabulate the evaluations: the train loss recorded last before each, and the loss of each set ± its 95% margin."""
    main, *others = ([*_losses(records)] for records in log.sets.values() or [[]])
    trained, train_losses = log.train["step"], log.train["train_loss"]
    marks = {0.0: "base model", log.best()[1]: "★ best"}
    steps = {step for step, _ in main}
    elsewhere = {step: UNKNOWN for each in others for step, _ in each if step not in steps}
    by_step, rows = [dict(each) for each in others], []
    for step, validation in sorted([*main, *elsewhere.items()], key=lambda row: row[0]) if elsewhere else main:
        before = train_losses[trained <= step]
        train = f"{before[-1]:.4f}" if len(before) else UNKNOWN
        further = (each.get(step, UNKNOWN) for each in by_step)
        rows.append((f"{step:,.0f}", train, validation, *further, marks.get(step, "")))
    names = (name or "unnamed" for name in log.other_sets)
    main_column = f"validation, {log.main_set}" if log.main_set and others else "validation"
    title = f"Evaluations, in {UNIT_WORDS[log.loss_unit]}"
    return Table(("step", "train", main_column, *names, ""), tuple(rows), title)


def _losses(records: Sequence[Record]) -> Iterator[tuple[float, str]]:
    """Yield (step, loss ± margin) of a set's evaluations."""
    columns = (column(records, name).tolist() for name in ("step", "val_loss", "val_loss_margin"))
    for step, loss, margin in zip(*columns, strict=True):
        yield step, UNKNOWN if math.isnan(loss) else f"{loss:.4f}" + ("" if math.isnan(margin) else f" ± {margin:.4f}")


def cost_table(run: RunDirectory | Path | str, prices: Prices | None) -> Table:
    """Tabulate what was sent to the service to be trained on and evaluated, and what it costs at these prices.

    Raises:
        RunDirectoryError: run.json cannot be read.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    spent = (run.read_state() or RunState()).spent or Spent()
    train, evaluate = (None, None) if prices is None else (prices.train, prices.evaluate)
    parts = (("training", spent.tokens, train), ("evaluations", spent.eval_tokens, evaluate))
    rows = tuple(
        (part, f"{tokens:,}", "–" if price is None else dollars(token_cost(tokens, price)))
        for part, tokens, price in parts
    )
    return Table(("part", "tokens", "cost"), rows, "What was paid for")


def answer_table(before: Sequence[Sample], after: Sequence[Sample]) -> Table:
    """Tabulate what the base model and the trained one answer to the same prompts, beside the answers in the data."""
    rows = tuple((b.prompt, b.reference, b.completion, a.completion) for b, a in zip(before, after, strict=True))
    return Table(("prompt", "wanted", "base model", "trained"), rows, "Answers before and after", words=True)
