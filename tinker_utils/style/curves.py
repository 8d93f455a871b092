"""Draws what a metrics file says as one matplotlib `Figure`: losses above, tokens per second below.

No pyplot, no global state and no window: whoever has the figure saves it, or sends its bytes to a notebook. The live
view and the still picture are both drawn here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tinker_utils.basics.redaction import printable
from tinker_utils.config.paths import as_path
from tinker_utils.run.best import lowest
from tinker_utils.run.directory import write_atomically
from tinker_utils.run.figures import UNIT_WORDS
from tinker_utils.run.metrics import ema
from tinker_utils.run.series import FloatArray, MetricsLog, column
from tinker_utils.style.legend import ROW_HEIGHT, draw_legend, rows_of, shortened
from tinker_utils.style.lines import MAX_SETS, Quantity, draw_evaluations, draw_marks, draw_train
from tinker_utils.style.palette import INK, PALE_INK, WHITE, style_axes
from tinker_utils.style.reduction import MAX_DRAWN, drawable, extremes, means

Scale = Literal["linear", "log"]

# Records are pooled over several steps already: more would lag behind the curve of a short run.
DEFAULT_SMOOTHING = 0.7
_WIDTH, _HEIGHT = 9.6, 5.2  # inches
_NAMED_EPOCHS = 8


def figure(
    log: MetricsLog,
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    quantity: Quantity = "loss",
    scale: Scale = "linear",
    title: str | None = None,
    reuse: Figure | None = None,
) -> Figure:
    """Draw the curves of a run, 9.6 by 5.2 inches, and higher where its legend needs several rows.

    The `gid` of an artist says what it shows.

    Args:
        log: what was read; of records in two units, those in `log.loss_unit` are drawn.
        smoothing: weight of the past in the moving averages, in [0, 1).
        quantity: `perplexity` draws exp(loss), which only losses per token have.
        scale: of the upper panel's y axis; it is linear without a positive value, or with one below 1e-100.
        title: stands above the panels.
        reuse: a figure made here before, which is drawn anew and returned: that takes a third less time.

    Raises:
        ValueError: `smoothing` is out of range, or a perplexity was asked for that these losses do not have.
    """
    if quantity == "perplexity" and log.loss_unit != "nats/token":
        unit = UNIT_WORDS[log.loss_unit]
        raise ValueError(f"only a loss per completion token has a perplexity; no perplexity is known of {unit}")
    drawing = _blank() if reuse is None else _emptied(reuse)
    upper, lower = drawing.axes
    order = np.argsort(log.train["step"], kind="stable")  # a resumed run may have logged some steps twice
    steps = drawable(log.train["step"][order])
    draw_train(upper, log, order, smoothing, quantity)
    draw_evaluations(upper, log, quantity)
    draw_marks(upper, log, quantity)
    _set_scale(upper, scale)
    _draw_speed(lower, steps, drawable(log.train["tokens_per_sec"][order]), smoothing)
    _draw_epochs(upper, lower, log.epoch_starts())
    upper.set_ylabel(quantity if quantity == "perplexity" else f"loss, {UNIT_WORDS[log.loss_unit]}")
    rows = rows_of(upper)
    _lay_out(drawing, len(rows), title)
    draw_legend(upper, rows)
    places = np.concatenate([steps, *(column(records, "step") for records in log.sets.values())])
    if len(places) and places.min() == places.max():  # matplotlib would show a hundredth of a step
        upper.set_xlim(places[0] - 1, places[0] + 1)
    if not len(steps) and not log.val:
        upper.text(0.5, 0.5, "no record yet", transform=upper.transAxes, ha="center", color=PALE_INK, fontsize=11)
        upper.set(xlim=(0, 10), ylim=(0, 1))
    return drawing


def png(drawing: Figure, dpi: int = 150) -> bytes:
    """Write the figure as PNG; the same records give the same bytes, as no date or version goes in."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg(drawing: Figure) -> str:
    """Write the figure as SVG, its letters as paths: half the work of a PNG, and sharp on every screen."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_png(drawing: Figure, path: Path | str, dpi: int = 150) -> None:
    """Write the figure as PNG, whole or not at all; raises RunDirectoryError when `path` cannot be written."""
    write_atomically(as_path(path, "path"), png(drawing, dpi))


def describe(log: MetricsLog, smoothing: float = DEFAULT_SMOOTHING) -> str:
    """Describe the curves that `figure` draws with this smoothing, for those who cannot see them."""
    parts = []
    if len(log.train):
        average = ema(drawable(log.train["train_loss"]), smoothing)[-1]
        parts.append(f"up to step {int(log.train['step'].max()):,} in epoch {int(log.train['epoch'].max())}")
        parts.append(f"smoothed train loss {average:.4g} {UNIT_WORDS[log.loss_unit]}{_sources(log, smoothing)}")
    losses, others = log.val_column("val_loss"), log.other_sets
    if len(losses):
        name = f" of {shortened(log.main_set)}" if others and log.main_set else ""
        parts.append(f"validation loss{name} {losses[-1]:.4g} after {len(losses):,} evaluations")
    best, step = log.best()
    if best is not None:
        parts.append(f"lowest {best:.4g}" + (f" at step {step:,}" if step is not None else ""))
    if base := log.base_model():
        parts.append(f"base model {base.words(f'{base.loss:.4g}')}")
    stop = log.early_stop_step()
    sentences = (
        f"Training curves: {', '.join(parts) or 'no record yet'}.",
        "" if stop is None else f"The run stopped early at step {stop:,}.",
        f"Further validation sets: {_others(log)}." if others else "",
    )
    return " ".join(filter(None, sentences))


def _sources(log: MetricsLog, smoothing: float) -> str:
    latest = [
        f"{shortened(name)} {ema(drawable(log.train.source(name)), smoothing)[-1]:.4g}" for name in log.train.sources
    ]
    return f" ({', '.join(latest)}{', …' if log.train.has_more_sources else ''})" if latest else ""


def _others(log: MetricsLog) -> str:
    found = []
    for name in list(log.other_sets)[:MAX_SETS]:
        steps, losses = log.val_column("step", name), log.val_column("val_loss", name)
        at = lowest(steps, losses)
        least = "" if at is None else f" (lowest {losses[at]:.4g} at step {int(steps[at]):,})"
        found.append(f"{shortened(name) or 'unnamed'} {losses[-1]:.4g}{least}")
    more = len(log.other_sets) - MAX_SETS
    return ", ".join(found) + (f" and {more:,} more" if more > 0 else "")


def _blank() -> Figure:
    """Return two empty panels, of one look whatever style the user's own matplotlib has."""
    drawing = Figure(figsize=(_WIDTH, _HEIGHT), facecolor=WHITE)
    upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    for axes in (upper, lower):
        style_axes(axes)
        axes.margins(x=0.012)
        axes.yaxis.set_label_coords(-0.062, 0.5)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    lower.xaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.set(xlabel="step", ylabel="tokens / s")
    return drawing


def _emptied(drawing: Figure) -> Figure:
    """Remove what was drawn in a figure; its axes with their ticks, the expensive part, stay."""
    for axes in drawing.axes:
        for artist in [*axes.lines, *axes.collections, *axes.texts, *axes.artists]:
            artist.remove()
        axes.relim()
        axes.autoscale(True)
    for text in list(drawing.texts):
        text.remove()
    return drawing


def _lay_out(drawing: Figure, rows: int, title: str | None) -> None:
    """Set the panels' places; each row of the legend but the first makes the figure higher."""
    height = _HEIGHT + ROW_HEIGHT * (rows - 1)
    drawing.set_size_inches(_WIDTH, height)
    above = (0.125 if title else 0.065) * _HEIGHT + height - _HEIGHT
    drawing.subplots_adjust(left=0.085, right=0.97, top=1 - above / height, bottom=0.098 * _HEIGHT / height, hspace=0.1)
    if title:
        y = 1 - 0.05 * _HEIGHT / height
        drawing.text(0.085, y, printable(title), color=INK, fontsize=12, fontweight="bold", parse_math=False)


def _set_scale(axes: Axes, scale: Scale) -> None:
    # A margin below the least floats would end at 0, which no logarithmic axis has.
    if scale == "linear" or not 0 < axes.dataLim.ymax < np.inf or axes.dataLim.minposy < 1 / MAX_DRAWN:
        axes.set_yscale("linear")
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_speed(axes: Axes, steps: FloatArray, speeds: FloatArray, smoothing: float) -> None:
    axes.plot(*extremes(steps, speeds), gid="speed", color=PALE_INK, linewidth=0.7, alpha=0.45)
    axes.plot(*means(steps, ema(speeds, smoothing)), gid="speed average", color=INK, linewidth=1.5)
    axes.set_ylim(bottom=0)


def _draw_epochs(upper: Axes, lower: Axes, starts: list[tuple[int, int]]) -> None:
    """Draw a dotted line where each later epoch begins; a few of many are named."""
    starts = [(epoch, step) for epoch, step in starts if abs(step) <= MAX_DRAWN]
    for axes in (upper, lower):
        axes.vlines(
            [step for _, step in starts], 0, 1, transform=axes.get_xaxis_transform(),
            gid="epochs", colors=PALE_INK, linestyles=":", linewidth=1,
        )  # fmt: skip
    right_edge = upper.dataLim.x1
    for epoch, step in starts[:: max(1, -(-len(starts) // _NAMED_EPOCHS))]:
        leftwards = step > right_edge - 0.07 * (right_edge - upper.dataLim.x0)
        upper.annotate(
            f"epoch {epoch}", (step, 1), (-3 if leftwards else 3, -2), upper.get_xaxis_transform(), "offset points",
            ha="right" if leftwards else "left", va="top", fontsize=8.5, color=PALE_INK,
        )  # fmt: skip
