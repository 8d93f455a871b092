"""One look for all axes: a pale grid, no frame but the line below, and figures that are not in the way."""

from __future__ import annotations

from matplotlib.axes import Axes

from tinker_utils.style.palette import GRID, INK, PALE_INK, WHITE


def style_axes(axes: Axes) -> None:
    """Give axes the project's look, whatever style the user's own matplotlib has."""
    axes.set_facecolor(WHITE)
    axes.grid(True, color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    axes.tick_params(colors=PALE_INK, labelcolor=PALE_INK, labelsize=9, length=0, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9.5)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=PALE_INK)
