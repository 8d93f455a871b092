"""Draws loss curves of several runs over each other, along steps, tokens or dollars; each unit has its own panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tinker_utils.comparison.run import AXES, Axis, Curve, Run
from tinker_utils.comparison.table import SMOOTHING, axes_known
from tinker_utils.errors import MetricsError
from tinker_utils.run.figures import UNIT_WORDS, LossUnit
from tinker_utils.run.metrics import ema
from tinker_utils.run.series import FloatArray
from tinker_utils.style.lines import MARKED_POINTS
from tinker_utils.style.palette import INK, PALE_INK, SERIES, WHITE, style_axes
from tinker_utils.style.reduction import means

AXIS_WORDS: dict[Axis, str] = {"step": "step", "tokens": "tokens trained on", "dollars": "dollars spent"}

_NAME_LENGTH = 26  # characters that fit beside a panel

# Line style and marker change along with the colour, in cycles of other lengths: runs are told apart without any colour
# as well.
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = "os^Dv"
MAX_RUNS = 28  # combinations of colour and line style


def overlay(runs: Sequence[Run], by: Axis = "step") -> Figure:
    """Draw the curves of all runs, 9.6 inches wide, with a panel for each unit that their losses are in.

    A run whose log does not say where its points stand on the axis is named below the panels instead.

    Args:
        runs: at most 28.
        by: what the curves are laid along.

    Raises:
        MetricsError: there is no such axis, no run, none that can be drawn along the axis, or too many to tell apart.
    """
    panels = _panels(runs, by)
    height = 2.1 * len(panels) + 1.0  # inches
    drawing = Figure(figsize=(9.6, height), facecolor=WHITE)
    drawing.subplots_adjust(left=0.075, right=0.735, top=1 - 0.42 / height, bottom=0.86 / height, hspace=0.28)
    grid = drawing.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (unit, members) in zip(grid[:, 0], panels.items(), strict=True):
        _plain(axes, by)
        axes.set_title(UNIT_WORDS[unit], loc="left", fontsize=9.5, color=INK)
        for run in members:
            _draw(axes, run, runs.index(run), by)
        legend = axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9, labelcolor=INK, handlelength=3.2
        )
        # Names are set afterwards, as they are: of labels, matplotlib drops `_a` and typesets `$a$`.
        for text, run in zip(legend.get_texts(), members, strict=True):
            text.set(text=_short(run.name), parse_math=False)
    grid[-1, 0].set_xlabel(AXIS_WORDS[by])
    marks = f"thick line: validation, with a star at its best; thin line: train, smoothed {SMOOTHING:g}"
    for line, note in enumerate(filter(None, (marks, _not_drawn(runs, by)))):
        y = (0.22 - 0.16 * line) / height
        drawing.text(0.075, y, note, color=PALE_INK, fontsize=8.5, parse_math=False)
    return drawing


def describe_overlay(runs: Sequence[Run], by: Axis = "step") -> str:
    """Describe the curves in a few sentences, for those who cannot see them; raises as `overlay` does."""
    panels = [
        f"{UNIT_WORDS[unit].capitalize()}: {'; '.join(map(_in_words, members))}."
        for unit, members in _panels(runs, by).items()
    ]
    beginning = f"Losses of {len(runs)} runs by {AXIS_WORDS[by]}, a panel for each unit."
    return " ".join(filter(None, (beginning, *panels, _not_drawn(runs, by))))


def _panels(runs: Sequence[Run], by: Axis) -> dict[LossUnit, list[Run]]:
    """Return the runs that can be drawn, by unit, in the order of `UNIT_WORDS`."""
    if by not in AXES:
        raise MetricsError(f"by: there is no axis {by!r}; choose from {', '.join(AXES)}.")
    if len(runs) > MAX_RUNS:
        raise MetricsError(f"runs: {len(runs)} curves cannot be told apart; give at most {MAX_RUNS}.")
    drawn = [run for run in runs if by in axes_known([run])]
    if not drawn:
        raise MetricsError(f"by: none of the {len(runs)} runs has losses by {by}; choose another axis or other runs.")
    panels = {unit: [run for run in drawn if run.unit == unit] for unit in UNIT_WORDS}
    return {unit: members for unit, members in panels.items() if members}


def _draw(axes: Axes, run: Run, number: int, by: Axis) -> None:
    """Draw a run's curves in the style of its number; one of them has a place in the legend."""
    colour, line = SERIES[number % len(SERIES)], _LINES[number % len(_LINES)]
    x, y = _smoothed(run.train, by)
    (train,) = axes.plot(x, y, color=colour, linestyle=line, linewidth=1, alpha=0.75, gid=f"train {number}")
    x, y = run.valid.known(by)
    if not len(x):
        train.set_label("run")
        return
    marker = _MARKERS[number % len(_MARKERS)] if len(x) <= MARKED_POINTS else ""
    axes.plot(
        *means(x, y), color=colour, linestyle=line, linewidth=2, marker=marker, markersize=5,
        markeredgecolor=WHITE, label="run", gid=f"validation {number}",
    )  # fmt: skip
    lowest = int(np.argmin(y))
    axes.plot(
        x[lowest], y[lowest], color=colour, marker="*", markersize=15, markeredgecolor=WHITE, zorder=5,
        gid=f"best {number}",
    )  # fmt: skip


def _smoothed(curve: Curve, by: Axis) -> tuple[FloatArray, FloatArray]:
    x, y = curve.known(by)
    return means(x, ema(y, SMOOTHING))


def _plain(axes: Axes, by: Axis) -> None:
    style_axes(axes)
    axes.margins(x=0.015)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=by != "dollars"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"${x:g}" if by == "dollars" else f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylabel("loss")


def _not_drawn(runs: Sequence[Run], by: Axis) -> str:
    missing = [_short(run.name) for run in runs if by not in axes_known([run])]
    return f"Not drawn, because their logs do not give {by}: {', '.join(missing)}." if missing else ""


def _in_words(run: Run) -> str:
    best, step = run.best()
    if best is None:
        return f"{run.name}, train loss {_smoothed(run.train, 'step')[1][-1]:.4g} at the end"
    return f"{run.name}, lowest validation loss {best:.4g} at step {step:,}, {run.valid.loss[-1]:.4g} at the end"


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"
