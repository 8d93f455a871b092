"""The figures of a run, each said once: what it is, how it is computed, how it is written, and where it is seen.

metrics.jsonl, train.log, the columns that readers keep, the live view and the tables of docs/metrics.md follow from
`TRAIN` and `VAL`: a new figure is one entry here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tinker_utils.basics.numbers import short
from tinker_utils.loss import PooledLoss
from tinker_utils.run.state import Progress, SourceWindow

# Numbers in different units say nothing about each other, though some look alike: a mean of means gives the tokens of
# short answers more weight than those of long ones, a sum grows with the batch, and a preference is no likelihood.
LossUnit = Literal["nats/token", "example means", "batch means", "nats/batch", "preference"]
UNIT_WORDS: dict[LossUnit, str] = {
    "nats/token": "nats per completion token",
    "example means": "nats, mean of example means",
    "batch means": "nats, mean of batch means",
    "nats/batch": "nats per batch (summed)",
    "preference": "preference loss",
}


@dataclass(frozen=True)
class Window:
    """The content of a train record: the steps since the record before it.

    Attributes:
        progress: the run's counters after the last of the steps, and the sums over the window.
        epoch: that of the last step, from 1.
        seconds: how long the steps took, pauses left out.
        learning_rate: that of the last step.
        cost_usd: dollars since the run's start; None where no price is known.
    """

    progress: Progress
    epoch: int
    seconds: float
    learning_rate: float
    cost_usd: float | None


@dataclass(frozen=True)
class Evaluated:
    """The content of a val record: one evaluation.

    Attributes:
        epoch: that of the step after which it was made, from 1.
        batches: number of requests for the validation set.
        pooled: the loss over what was evaluated.
        bits_per_byte: bits for each byte of completion text; None where it is not known.
    """

    epoch: int
    batches: int
    pooled: PooledLoss
    bits_per_byte: float | None


@dataclass(frozen=True)
class Compared(Evaluated):
    """The content of a val record of the watched validation set.

    Attributes:
        best: the lowest loss before this one, in nats per completion token; None at the first evaluation.
        difference: the paired difference to the evaluation that `best` is of; None where it is not known.
        is_best: whether this one is now the best.
    """

    best: float | None
    difference: PooledLoss | None
    is_best: bool


def number(value: float) -> str:
    """Return four digits of a number."""
    return f"{value:.4g}"


def dollars(amount: float) -> str:
    """Return dollars and cents; more places for amounts below a cent."""
    return f"${amount:,.2f}" if amount >= 0.01 or amount == 0 else f"${amount:.2g}"


@dataclass(frozen=True)
class Figure:
    """One figure of a record.

    Attributes:
        name: its field in metrics.jsonl.
        meaning: what it is, for docs/metrics.md.
        of: computes it from a `Window` or an `Evaluated`; None for one that the service gives.
        unit: for docs/metrics.md.
        logged: whether train.log shows it.
        absent: what a reader takes where a train record lacks it; None keeps no column of it in memory.
        label: its name in the live view; empty if it is not shown there.
        format: writes it for a person.
        margin: the name of the figure that is half the width of its 95% band.
        optional: whether the live view leaves it out where it is unknown, instead of showing a dash.
    """

    name: str
    meaning: str
    of: Callable[[Any], float | int | bool | None] | None = None
    unit: str = ""
    logged: bool = False
    absent: float | None = None
    label: str = ""
    format: Callable[[float], str] = number
    margin: str = ""
    optional: bool = False


_NATS = UNIT_WORDS["nats/token"]
TRAIN = (
    Figure("epoch", "counted from 1; a missing epoch means 1", lambda w: w.epoch, logged=True, absent=1.0),
    Figure(
        "train_loss", "`train_loss_total / completion_tokens`",
        lambda w: w.progress.window_nll / w.progress.window_completion_tokens,
        _NATS, logged=True, absent=math.nan, label="train loss",
    ),
    Figure("train_loss_total", "the negative log-likelihood of the steps", lambda w: w.progress.window_nll, "nats"),
    Figure(
        "tokens_per_sec", "`tokens` over the time that the steps took, pauses left out",
        lambda w: round(w.progress.window_tokens / max(w.seconds, 1e-9), 1),
        "tokens per second", logged=True, absent=0.0, label="tokens per second", format=short,
    ),
    Figure("tokens", "trained on in these steps, prompts included", lambda w: w.progress.window_tokens, "tokens"),
    Figure(
        "completion_tokens", "those of `tokens` that are in the loss",
        lambda w: w.progress.window_completion_tokens, "tokens",
    ),
    Figure(
        "tokens_seen", "trained on since the run's start", lambda w: w.progress.tokens,
        "tokens", absent=math.nan, label="tokens", format=short,
    ),
    Figure(
        "learning_rate", "learning rate at the record's step", lambda w: w.learning_rate,
        logged=True, absent=math.nan, label="learning rate", format="{:.3g}".format,
    ),
    Figure(
        "cost_usd", "spent since the run's start; null where no price is known", lambda w: w.cost_usd,
        "dollars", logged=True, absent=math.nan, label="cost", format=dollars, optional=True,
    ),
    Figure(
        "grad_norm", "the gradient's norm before clipping, where the service gives it",
        logged=True, label="gradient norm", optional=True,
    ),
)  # fmt: skip
# What each validation set has, and what only the watched one has.
_OF_EACH_SET = (
    TRAIN[0],
    Figure(
        "val_loss", "`val_loss_total / completion_tokens`", lambda e: e.pooled.loss,
        _NATS, logged=True, label="validation loss", margin="val_loss_margin",
    ),
    Figure("val_batches", "number of requests for the validation set", lambda e: e.batches),
    Figure(
        "val_bits_per_byte",
        "bits for each byte of completion text, which models with other tokenizers can be compared by; null without "
        "logprobs",
        lambda e: e.bits_per_byte, "bits per byte", logged=True, label="bits per byte", optional=True,
    ),
    Figure("val_loss_total", "the set's negative log-likelihood", lambda e: e.pooled.total, "nats"),
    Figure("completion_tokens", "of the validation set", lambda e: e.pooled.completion_tokens, "tokens"),
    Figure(
        "val_loss_stderr", "the standard error of `val_loss`, with examples as the units; null without logprobs",
        lambda e: e.pooled.stderr, _NATS, logged=True,
    ),
    Figure("val_loss_margin", "half the width of its 95% band", lambda e: e.pooled.margin, _NATS),
    Figure("perplexity", "exp of `val_loss`", lambda e: e.pooled.perplexity),
)  # fmt: skip
VAL = (
    *_OF_EACH_SET,
    Figure(
        "val_diff_best", "`val_loss` minus that of the best evaluation before this one; negative: this one is better",
        lambda e: None if e.best is None or e.pooled.loss is None else e.pooled.loss - e.best, _NATS, logged=True,
    ),
    Figure(
        "val_diff_best_stderr", "its standard error, paired example by example",
        lambda e: e.difference and e.difference.stderr, _NATS, logged=True,
    ),
    Figure(
        "val_diff_best_margin", "half the width of its 95% band", lambda e: e.difference and e.difference.margin, _NATS,
    ),
    Figure(
        "is_best", "whether it is the lowest so far; never at step 0, of the base model", lambda e: e.is_best,
        logged=True,
    ),
)  # fmt: skip


def fields_of(about: Window | Evaluated) -> dict[str, float | int | bool | None]:
    """Return a record's fields by name: those of its figures that are computed."""
    of_set = VAL if isinstance(about, Compared) else _OF_EACH_SET
    return {each.name: each.of(about) for each in (TRAIN if isinstance(about, Window) else of_set) if each.of}


def of_sources(windows: Mapping[str, SourceWindow]) -> dict[str, float | int]:
    """Return the fields of a train record that are about single sources, of several that are trained on."""
    fields: dict[str, float | int] = {}
    for name, window in sorted(windows.items()):
        fields |= {
            f"train_loss/{name}": window.nll / window.completion_tokens,
            f"completion_tokens/{name}": window.completion_tokens,
        }
    return fields
