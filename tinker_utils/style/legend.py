"""A legend above a panel, in as many rows as its entries need; and names as short as a legend has room for."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import offset_copy

from tinker_utils.basics.redaction import printable
from tinker_utils.style.palette import INK

ROW_HEIGHT = 0.2  # inches
_SIZE = 9  # of the letters, in points, as are the lengths below
_HANDLE, _SPACE = 2.6 * _SIZE, 1.4 * _SIZE  # what shows the line with the gap behind it, and the gap between entries
_WIDTH = 620  # from the panel's left edge to that of the figure
_HINTING = 1.05  # letters on whole pixels are up to 4% wider than their outlines
_NAME_LENGTH = 26  # characters

Entry = tuple[Artist, str]


def shortened(name: str) -> str:
    """Return a name in one printable line of at most 26 characters, its end if it is longer."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def rows_of(axes: Axes) -> list[list[Entry]]:
    """Return what a panel's legend shows, in rows that are not wider than the figure."""
    rows: list[list[Entry]] = [[]]
    used, letters = 0.0, FontProperties(size=_SIZE)
    for entry in zip(*axes.get_legend_handles_labels(), strict=True):
        width = _HANDLE + _HINTING * text_to_path.get_text_width_height_descent(entry[1], letters, False)[0]
        if rows[-1] and used + _SPACE + width > _WIDTH:
            rows.append([])
        used = used + _SPACE + width if rows[-1] else width
        rows[-1].append(entry)
    return rows


def draw_legend(axes: Axes, rows: Sequence[Sequence[Entry]]) -> None:
    """Draw the rows one above the other; the last one stands on the panel, and is its `get_legend()`."""
    for row, entries in enumerate(rows, start=1):
        legend = axes.legend(
            [handle for handle, _ in entries], [label for _, label in entries],
            loc="lower left", bbox_to_anchor=(-0.008, 1.0),
            bbox_transform=offset_copy(axes.transAxes, axes.get_figure(root=True), y=ROW_HEIGHT * (len(rows) - row)),
            ncols=max(len(entries), 1), frameon=False, fontsize=_SIZE, labelcolor=INK, handlelength=1.8,
            columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # names stay as they are
        if row < len(rows):
            axes.add_artist(legend)  # the next one takes its place as the panel's own
