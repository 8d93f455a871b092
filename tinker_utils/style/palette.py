"""The colours of everything that is drawn.

Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision. Their yellow is left out,
as it is too pale for lines. What a colour marks differs in width, line style or marker as well, so that a picture can
be read without any colour.
"""

from __future__ import annotations

WHITE, INK, PALE_INK, GRID = "#FFFFFF", "#262626", "#595959", "#E6E6E6"
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
# One after the other for curves of a kind, such as those of several runs.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, BLACK, ORANGE, SKY)
