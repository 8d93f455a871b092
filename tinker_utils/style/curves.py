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
from numpy.typing import NDArray

from tinker_utils.config.paths import as_path
from tinker_utils.run.directory import write_atomically
from tinker_utils.run.figures import UNIT_WORDS
from tinker_utils.run.metrics import ema
from tinker_utils.run.series import FloatArray, MetricsLog
from tinker_utils.style.palette import BLUE, GREEN, INK, PALE_INK, PURPLE, SKY, VERMILION, WHITE, style_axes

Quantity = Literal["loss", "perplexity"]
Scale = Literal["linear", "log"]

# Records are pooled over several steps already: more would lag behind the curve of a short run.
DEFAULT_SMOOTHING = 0.7
_BINS = 450  # a panel is about 900 pixels wide
MARKED_POINTS = 60  # a line of more points is drawn without markers
_NAMED_EPOCHS = 8
# matplotlib fails on axes that end near the largest float (1.8e308): it adds margins, squares and takes powers of ten
# beyond them. No loss that means anything is larger than this, so what is has no place in the picture, like NaN.
_MAX_DRAWN = 1e100
_CONFIDENCE = 1.96  # standard errors that make a 95% band where a record, of an older run, does not say


def figure(
    log: MetricsLog,
    *,
    smoothing: float = DEFAULT_SMOOTHING,
    quantity: Quantity = "loss",
    scale: Scale = "linear",
    title: str | None = None,
    reuse: Figure | None = None,
) -> Figure:
    """Draw the curves of a run, 9.6 by 5.2 inches; the `gid` of an artist says what it shows.

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
    drawing.subplots_adjust(left=0.085, right=0.97, top=0.875 if title else 0.935, bottom=0.098, hspace=0.1)
    if title:
        drawing.text(0.085, 0.95, title, color=INK, fontsize=12, fontweight="bold", parse_math=False)
    upper, lower = drawing.axes
    order = np.argsort(log.train["step"], kind="stable")  # a resumed run may have logged some steps twice
    steps = _drawable(log.train["step"][order])
    _draw_train(upper, steps, _drawable(log.train["train_loss"][order]), smoothing, quantity)
    _draw_validation(upper, log, quantity)
    _draw_marks(upper, log, quantity)
    _set_scale(upper, scale)
    _draw_speed(lower, steps, _drawable(log.train["tokens_per_sec"][order]), smoothing)
    _draw_epochs(upper, lower, log.epoch_starts())
    upper.set_ylabel(quantity if quantity == "perplexity" else f"loss, {UNIT_WORDS[log.loss_unit]}")
    upper.legend(
        loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=6, frameon=False, fontsize=9,
        labelcolor=INK, handlelength=1.8, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    places = np.concatenate([steps, log.val_column("step")])
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
        average = ema(_drawable(log.train["train_loss"]), smoothing)[-1]
        parts.append(f"up to step {int(log.train['step'].max()):,} in epoch {int(log.train['epoch'].max())}")
        parts.append(f"smoothed train loss {average:.4g} {UNIT_WORDS[log.loss_unit]}")
    losses = log.val_column("val_loss")
    if len(losses):
        parts.append(f"validation loss {losses[-1]:.4g} after {len(losses):,} evaluations")
    best, step = log.best()
    if best is not None:
        parts.append(f"lowest {best:.4g}" + (f" at step {step:,}" if step is not None else ""))
    sentence = f"Training curves: {', '.join(parts) or 'no record yet'}."
    stop = log.early_stop_step()
    return sentence if stop is None else f"{sentence} The run stopped early at step {stop:,}."


def _blank() -> Figure:
    """Return two empty panels, of one look whatever style the user's own matplotlib has."""
    drawing = Figure(figsize=(9.6, 5.2), facecolor=WHITE)
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
        for artist in [*axes.lines, *axes.collections, *axes.texts]:
            artist.remove()
        axes.relim()
        axes.autoscale(True)
    for text in list(drawing.texts):
        text.remove()
    return drawing


def _set_scale(axes: Axes, scale: Scale) -> None:
    # A margin below the least floats would end at 0, which no logarithmic axis has.
    if scale == "linear" or not 0 < axes.dataLim.ymax < np.inf or axes.dataLim.minposy < 1 / _MAX_DRAWN:
        axes.set_yscale("linear")
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_train(axes: Axes, steps: FloatArray, losses: FloatArray, smoothing: float, quantity: Quantity) -> None:
    marker = "." if len(steps) <= MARKED_POINTS else ""
    axes.plot(
        *extremes(steps, _shown(losses, quantity)), label="train", gid="train",
        color=SKY, linewidth=0.8, alpha=0.6, marker=marker,
    )  # fmt: skip
    axes.plot(
        *means(steps, _shown(ema(losses, smoothing), quantity)), label=f"train, smoothed {smoothing:g}", gid="average",
        color=BLUE, linewidth=2, marker=marker, markersize=4,
    )  # fmt: skip


def _draw_validation(axes: Axes, log: MetricsLog, quantity: Quantity) -> None:
    order = np.argsort(log.val_column("step"), kind="stable")
    steps, losses, error, stderr = (
        _drawable(log.val_column(name)[order]) for name in ("step", "val_loss", "val_loss_margin", "val_loss_stderr")
    )
    if not len(losses):
        return
    error = np.where(np.isnan(error), _CONFIDENCE * stderr, error)
    has_band = bool(np.isfinite(error).any())
    if has_band:
        low, high = _shown(losses - error, quantity), _shown(losses + error, quantity)
        axes.fill_between(steps, low, high, gid="band", color=VERMILION, alpha=0.18, linewidth=0)
    axes.plot(
        *extremes(steps, _shown(losses, quantity)), label="validation, 95% band" if has_band else "validation",
        gid="validation", color=VERMILION, linewidth=1.6, linestyle=(0, (5, 1)),
        marker="o" if len(losses) <= MARKED_POINTS else "", markersize=5, markeredgecolor=WHITE,
    )  # fmt: skip


def _draw_marks(axes: Axes, log: MetricsLog, quantity: Quantity) -> None:
    """Draw the best evaluation, and where the run stopped early."""
    best, step = log.best()
    if best is not None and step is not None and abs(step) <= _MAX_DRAWN:
        value = float(_shown(np.array([best]), quantity)[0])
        axes.plot(
            [step], [value], label=f"best {value:.4g} at step {step:,}", gid="best",
            color=GREEN, marker="*", markersize=15, markeredgecolor=WHITE, linestyle="", zorder=5,
        )  # fmt: skip
    stop = log.early_stop_step()
    if stop is not None and abs(stop) <= _MAX_DRAWN:
        axes.plot(
            [stop, stop], [0, 1], transform=axes.get_xaxis_transform(), label=f"stopped early at step {stop:,}",
            gid="early stop", color=PURPLE, linewidth=1.8, linestyle="--", marker="X", markevery=[1], clip_on=False,
        )  # fmt: skip


def _draw_speed(axes: Axes, steps: FloatArray, speeds: FloatArray, smoothing: float) -> None:
    axes.plot(*extremes(steps, speeds), gid="speed", color=PALE_INK, linewidth=0.7, alpha=0.45)
    axes.plot(*means(steps, ema(speeds, smoothing)), gid="speed average", color=INK, linewidth=1.5)
    axes.set_ylim(bottom=0)


def _draw_epochs(upper: Axes, lower: Axes, starts: list[tuple[int, int]]) -> None:
    """Draw a dotted line where each later epoch begins; a few of many are named."""
    starts = [(epoch, step) for epoch, step in starts if abs(step) <= _MAX_DRAWN]
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


def _shown(losses: FloatArray, quantity: Quantity) -> FloatArray:
    """Return losses or exp(losses); NaN, a gap in the line, where that cannot be drawn."""
    with np.errstate(over="ignore"):
        return _drawable(np.exp(losses) if quantity == "perplexity" else losses)


def _drawable(values: FloatArray) -> FloatArray:
    """Return the same with NaN, a gap in the line, in place of what is infinite or too large."""
    return np.where(np.abs(values) <= _MAX_DRAWN, values, np.nan)


def extremes(x: FloatArray, y: FloatArray, bins: int = _BINS) -> tuple[FloatArray, FloatArray]:
    """Reduce a long series to the lowest and highest value in each of `bins` equal intervals of x: no spike is lost.

    `x` ascends. A series with fewer than two points per interval is returned as it is. An interval without a finite
    value yields NaN, a gap; one without a point yields nothing.
    """
    if len(x) <= 2 * bins or x[0] == x[-1]:
        return x, y
    begins, middles = _intervals(x, bins)
    lowest_highest = np.stack([np.fmin.reduceat(y, begins), np.fmax.reduceat(y, begins)], axis=1)
    return np.repeat(middles, 2), lowest_highest.ravel()


def means(x: FloatArray, y: FloatArray, bins: int = _BINS) -> tuple[FloatArray, FloatArray]:
    """Reduce a long series to its mean in each interval that `extremes` makes: for what is smooth already."""
    if len(x) <= 2 * bins or x[0] == x[-1]:
        return x, y
    begins, middles = _intervals(x, bins)
    known = np.isfinite(y)
    sums = np.add.reduceat(np.where(known, y, 0.0), begins)
    counts = np.add.reduceat(known.astype(np.float64), begins)
    return middles, np.divide(sums, counts, out=np.full(len(begins), np.nan), where=counts > 0)


def _intervals(x: FloatArray, bins: int) -> tuple[NDArray[np.intp], FloatArray]:
    """Return (index of the first point, middle of the points) of each interval that has a point."""
    begins = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], bins, endpoint=False)))
    ends = np.append(begins[1:], len(x)) - 1
    return begins, (x[begins] + x[ends]) / 2
