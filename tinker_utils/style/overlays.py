"""Draws loss curves of several runs over each other, along steps, tokens or dollars; each unit has its own panel.

Below it stands a panel for each further validation set, with all runs that were evaluated on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tinker_utils.basics.redaction import printable
from tinker_utils.comparison.run import AXES, Axis, Curve, Run
from tinker_utils.comparison.table import SMOOTHING, about_tokenizers, axes_known, further_sets
from tinker_utils.errors import MetricsError
from tinker_utils.run.figures import UNIT_WORDS, LossUnit
from tinker_utils.run.metrics import ema
from tinker_utils.run.series import FloatArray
from tinker_utils.style.legend import shortened
from tinker_utils.style.lines import MARKED_POINTS, MAX_SETS
from tinker_utils.style.palette import INK, PALE_INK, SERIES, WHITE, style_axes
from tinker_utils.style.reduction import means

AXIS_WORDS: dict[Axis, str] = {"step": "step", "tokens": "tokens trained on", "dollars": "dollars spent"}

# Line style and marker change along with the colour, in cycles of other lengths: runs are told apart without any colour
# as well.
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = "os^Dv"
MAX_RUNS = 28  # combinations of colour and line style


@dataclass(frozen=True)
class _Panel:
    """Curves that may be compared: those of a unit, or of a further validation set in it."""

    unit: LossUnit
    members: Sequence[Run]
    set_name: str | None = None

    @property
    def title(self) -> str:
        words = UNIT_WORDS[self.unit]
        return words if self.set_name is None else f"{words}: validation, {shortened(self.set_name) or 'unnamed'}"

    def validation(self, run: Run) -> Curve:
        return run.valid if self.set_name is None else run.on_set(self.set_name)

    def label(self, run: Run) -> str:
        """Return the run's name, and its set's where that differs from another run's."""
        several = self.set_name is None and len({member.main_set for member in self.members}) > 1
        return shortened(run.name) + (f"\n(on {shortened(run.main_set)})" if several and run.main_set else "")


def overlay(runs: Sequence[Run], by: Axis = "step") -> Figure:
    """Draw the curves of all runs, 9.6 inches wide, with a panel for each unit, and for each further validation set.

    A run whose log does not say where its points stand on the axis is named below the panels instead.

    Args:
        runs: at most 28.
        by: what the curves are laid along.

    Raises:
        MetricsError: there is no such axis, no run, none that can be drawn along the axis, or too many to tell apart.
    """
    panels = _panels(runs, by)
    marks = f"thick line: validation, with a star at its best; thin line: train, smoothed {SMOOTHING:g}"
    notes = [marks, *_notes(runs, by)]
    further = 0.16 * max(len(notes) - 2, 0)  # inches, as are those that follow
    height = 2.1 * len(panels) + 1.0 + further
    bottom = (0.86 + further) / height
    drawing = Figure(figsize=(9.6, height), facecolor=WHITE)
    drawing.subplots_adjust(left=0.075, right=0.735, top=1 - 0.42 / height, bottom=bottom, hspace=0.28)
    grid = drawing.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _plain(axes, by)
        axes.set_title(panel.title, loc="left", fontsize=9.5, color=INK, parse_math=False)
        for run in panel.members:
            train = run.train if panel.set_name is None else None
            _draw(axes, train, panel.validation(run), runs.index(run), by)
        legend = axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=9, labelcolor=INK, handlelength=3.2
        )
        # Names are set afterwards, as they are: of labels, matplotlib drops `_a` and typesets `$a$`.
        for text, run in zip(legend.get_texts(), panel.members, strict=True):
            text.set(text=panel.label(run), parse_math=False)
    grid[-1, 0].set_xlabel(AXIS_WORDS[by])
    for line, note in enumerate(notes):
        y = (0.22 + further - 0.16 * line) / height
        drawing.text(0.075, y, note, color=PALE_INK, fontsize=8.5, parse_math=False)
    return drawing


def describe_overlay(runs: Sequence[Run], by: Axis = "step") -> str:
    """Describe the curves in a few sentences, for those who cannot see them; raises as `overlay` does."""
    panels = [
        f"{panel.title[:1].upper()}{panel.title[1:]}: {'; '.join(_in_words(panel, run) for run in panel.members)}."
        for panel in _panels(runs, by)
    ]
    beginning = f"Losses of {len(runs)} runs by {AXIS_WORDS[by]}, a panel for each unit."
    return " ".join((beginning, *panels, *_notes(runs, by)))


def _panels(runs: Sequence[Run], by: Axis) -> list[_Panel]:
    """Return the runs that can be drawn, by unit, in the order of `UNIT_WORDS`, each with its further sets."""
    if by not in AXES:
        raise MetricsError(f"by: there is no axis {by!r}; choose from {', '.join(AXES)}.")
    if len(runs) > MAX_RUNS:
        raise MetricsError(f"runs: {len(runs)} curves cannot be told apart; give at most {MAX_RUNS}.")
    drawn = [run for run in runs if by in axes_known([run])]
    if not drawn:
        raise MetricsError(f"by: none of the {len(runs)} runs has losses by {by}; choose another axis or other runs.")
    panels = []
    for unit in UNIT_WORDS:
        members = [run for run in drawn if run.unit == unit]
        panels += [_Panel(unit, members)] if members else []
        for name in further_sets(members)[:MAX_SETS]:
            known = [run for run in members if len(run.on_set(name).known(by)[0])]
            panels += [_Panel(unit, known, name)] if known else []
    return panels


def _draw(axes: Axes, train: Curve | None, valid: Curve, number: int, by: Axis) -> None:
    """Draw a run's curves in the style of its number; one of them has a place in the legend."""
    colour, line = SERIES[number % len(SERIES)], _LINES[number % len(_LINES)]
    x, y = valid.known(by)
    if train is not None:
        label = None if len(x) else "run"
        axes.plot(
            *_smoothed(train, by), color=colour, linestyle=line, linewidth=1, alpha=0.75, label=label,
            gid=f"train {number}",
        )  # fmt: skip
    if not len(x):
        return
    marker = _MARKERS[number % len(_MARKERS)] if len(x) <= MARKED_POINTS else ""
    axes.plot(
        *means(x, y), color=colour, linestyle=line, linewidth=2, marker=marker, markersize=5,
        markeredgecolor=WHITE, label="run", gid=f"validation {number}",
    )  # fmt: skip
    lowest = valid.lowest(by)
    if lowest is not None:
        axes.plot(
            getattr(valid, by)[lowest], valid.loss[lowest], color=colour, marker="*", markersize=15,
            markeredgecolor=WHITE, zorder=5, gid=f"best {number}",
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


def _notes(runs: Sequence[Run], by: Axis) -> list[str]:
    """Return what has to be said of the runs that the panels do not show."""
    missing = [shortened(run.name) for run in runs if by not in axes_known([run])]
    further = (further_sets([run for run in runs if run.unit == unit]) for unit in UNIT_WORDS)
    more = sum(max(len(names) - MAX_SETS, 0) for names in further)
    reason = about_tokenizers(runs)
    notes = (
        f"Not drawn, because their logs do not give {by}: {', '.join(missing)}." if missing else "",
        f"Not drawn: {more:,} more validation sets." if more > 0 else "",
        f"{reason[:1].upper()}{reason[1:]}." if reason else "",
    )
    return list(filter(None, notes))


def _in_words(panel: _Panel, run: Run) -> str:
    losses, name = panel.validation(run), printable(run.name)
    at = losses.lowest()
    if at is not None:
        lowest = f"lowest validation loss {losses.loss[at]:.4g} at step {int(losses.step[at]):,}"
        base = run.base_model() if losses is run.valid else None
        worse = f", base model {base.words(f'{base.loss:.4g}')}" if base and base.beats_training else ""
        return f"{name}, {lowest}, {losses.loss[-1]:.4g} at the end{worse}"
    train = _smoothed(run.train, "step")[1]
    return f"{name}, train loss {train[-1]:.4g} at the end" if len(train) else f"{name}, no loss after training"
