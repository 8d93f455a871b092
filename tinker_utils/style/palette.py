"""The look of everything that is drawn: its colours, and its axes.

Okabe and Ito, "Color Universal Design" (2008): colours told apart with any colour vision. Their yellow is left
out, as it is too pale for lines. What a colour marks differs in width, line style or marker as well, so that a picture
can be read without any colour.
"""

from __future__ import annotations

from matplotlib.axes import Axes

WHITE, INK, PALE_INK, GRID = "#FFFFFF", "#262626", "#595959", "#E6E6E6"
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
# One after the other for curves of a kind, such as those of several runs.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, BLACK, ORANGE, SKY)


def style_axes(axes: Axes) -> None:
    """Give axes a pale grid and no frame but the line below, whatever style the user's own matplotlib has."""
    axes.set_facecolor(WHITE)
    axes.grid(True, color=GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    axes.tick_params(colors=PALE_INK, labelcolor=PALE_INK, labelsize=9, length=0, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9.5)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=PALE_INK)
