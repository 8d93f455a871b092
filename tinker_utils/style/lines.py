"""The lines and marks of the figure of a run: its train losses, its validation sets, its best point and its end.

Sources and further sets differ in dash and marker as well as in colour, so that they are told apart without any.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tinker_utils.run.metrics import ema
from tinker_utils.run.series import FloatArray, MetricsLog
from tinker_utils.style.legend import shortened
from tinker_utils.style.palette import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION, WHITE
from tinker_utils.style.reduction import MAX_DRAWN, drawable, extremes, means

Quantity = Literal["loss", "perplexity"]

MARKED_POINTS = 60  # a line of more points is drawn without markers
_CONFIDENCE = 1.96  # standard errors that make a 95% band where a record, of an older run, does not say
_SET_MARKS = 20  # about that many markers stand on the line of a further set, however many points it has


@dataclass(frozen=True)
class _Look:
    colour: str
    dash: Any
    marker: str = ""


_MAIN = _Look(VERMILION, (0, (5, 1)), "o")
# No ink is black, which a dark theme would not show.
_SETS = tuple(
    map(
        _Look,
        cycle((ORANGE, PURPLE, GREEN, INK)),
        cycle(((0, (1, 1)), (0, (6, 1.2, 1, 1.2)), (0, (2.5, 1)))),
        "sD^vPX<>",
    )
)
MAX_SETS = len(_SETS)  # further validation sets that are told apart
_SOURCES = (
    _Look(GREEN, (0, (1, 1))),
    _Look(PURPLE, (0, (4, 1.2))),
    _Look(INK, (0, (6, 1.5, 1, 1.5))),
    _Look(ORANGE, (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    _Look(SKY, (0, (9, 2))),
)


def draw_train(axes: Axes, log: MetricsLog, order: NDArray[np.intp], smoothing: float, quantity: Quantity) -> None:
    """Draw the train losses in `order`, which is that of their steps, their moving average, and that of each source."""
    steps, losses = (drawable(log.train[name][order]) for name in ("step", "train_loss"))
    marker = "." if len(steps) <= MARKED_POINTS else ""
    axes.plot(
        *extremes(steps, _shown(losses, quantity)), label="train", gid="train",
        color=SKY, linewidth=0.8, alpha=0.6, marker=marker,
    )  # fmt: skip
    axes.plot(
        *means(steps, _shown(ema(losses, smoothing), quantity)), label=f"train, smoothed {smoothing:g}", gid="average",
        color=BLUE, linewidth=2, marker=marker, markersize=4,
    )  # fmt: skip
    for number, (name, look) in enumerate(zip(log.train.sources, _SOURCES, strict=False)):
        losses = ema(drawable(log.train.source(name)[order]), smoothing)
        axes.plot(
            *means(steps, _shown(losses, quantity)), label=f"train, {shortened(name)}", gid=f"source {number}",
            color=look.colour, linewidth=1.1, linestyle=look.dash,
        )  # fmt: skip
    if log.train.has_more_sources:
        _name_only(axes, "not drawn: further sources")


def draw_evaluations(axes: Axes, log: MetricsLog, quantity: Quantity) -> None:
    """Draw each validation set with its 95% band, the main one first."""
    others = list(log.other_sets)
    if log.val:
        label = f"validation, {shortened(log.main_set)}" if others and log.main_set else "validation"
        _draw_set(axes, log, log.main_set, _MAIN, quantity, label=label, gid="validation")
    for number, (name, look) in enumerate(zip(others, _SETS, strict=False)):
        label = f"validation, {shortened(name) or 'unnamed'}"
        _draw_set(axes, log, name, look, quantity, label=label, gid=f"validation {number}")
    if len(others) > MAX_SETS:
        _name_only(axes, f"not drawn: {len(others) - MAX_SETS:,} further sets")


def _draw_set(axes: Axes, log: MetricsLog, name: str, look: _Look, quantity: Quantity, *, label: str, gid: str) -> None:
    order = np.argsort(log.val_column("step", name), kind="stable")
    steps, losses, error, stderr = (
        drawable(log.val_column(column, name)[order])
        for column in ("step", "val_loss", "val_loss_margin", "val_loss_stderr")
    )
    error = np.where(np.isnan(error), _CONFIDENCE * stderr, error)
    is_main, has_band = look is _MAIN, bool(np.isfinite(error).any())
    if has_band:
        low, high = _shown(losses - error, quantity), _shown(losses + error, quantity)
        band = gid.replace("validation", "band")
        axes.fill_between(steps, low, high, gid=band, color=look.colour, alpha=0.18 if is_main else 0.12, linewidth=0)
    few = len(losses) <= MARKED_POINTS
    axes.plot(
        *extremes(steps, _shown(losses, quantity)), label=f"{label}, 95% band" if has_band and is_main else label,
        gid=gid, color=look.colour, linewidth=1.6, linestyle=look.dash,
        marker=look.marker if few or not is_main else "", markersize=5, markeredgecolor=WHITE,
        markevery=None if few else max(1, min(len(losses), 900) // _SET_MARKS),
    )  # fmt: skip


def draw_marks(axes: Axes, log: MetricsLog, quantity: Quantity) -> None:
    """Draw the base model, the best evaluation, and where the run stopped early."""
    base = log.base_model()
    if base is not None:
        value = float(_shown(np.array([base.loss]), quantity)[0])
        axes.plot(
            [0], [value], label=f"base model {base.words(f'{value:.4g}')}", gid="base model",
            color=VERMILION, marker="D", markersize=7, markerfacecolor=WHITE, linestyle="", zorder=5,
        )  # fmt: skip
    best, step = log.best()
    if best is not None and step is not None and abs(step) <= MAX_DRAWN:
        value = float(_shown(np.array([best]), quantity)[0])
        axes.plot(
            [step], [value], label=f"best {value:.4g} at step {step:,}", gid="best",
            color=GREEN, marker="*", markersize=15, markeredgecolor=WHITE, linestyle="", zorder=5,
        )  # fmt: skip
    stop = log.early_stop_step()
    if stop is not None and abs(stop) <= MAX_DRAWN:
        axes.plot(
            [stop, stop], [0, 1], transform=axes.get_xaxis_transform(), label=f"stopped early at step {stop:,}",
            gid="early stop", color=PURPLE, linewidth=1.8, linestyle="--", marker="X", markevery=[1], clip_on=False,
        )  # fmt: skip


def _name_only(axes: Axes, words: str) -> None:
    axes.plot([], [], label=words, gid="not drawn", linestyle="")


def _shown(losses: FloatArray, quantity: Quantity) -> FloatArray:
    """Return losses or exp(losses); NaN, a gap in the line, where that cannot be drawn."""
    with np.errstate(over="ignore"):
        return drawable(np.exp(losses) if quantity == "perplexity" else losses)
