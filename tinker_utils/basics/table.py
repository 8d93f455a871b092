"""A small table that reads well as plain text and as HTML; the same cells always give the same characters.

Cells may hold anything that a file or a model said: line breaks become spaces, control characters are spelled out, and
what would be markup is escaped.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from tinker_utils.basics.redaction import printable

# Text between dollar signs is text: MathJax, in JupyterLab and elsewhere, leaves elements of these classes alone.
NO_MATHEMATICS = "mathjax_ignore tex2jax_ignore"
_GAP = "  "
_LEFT = "text-align:left"


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a header.

    Attributes:
        header: what stands above each column; the first column names the rows.
        rows: cells, as many as the header has; a row of a single cell is the heading of those below it.
        caption: what the table shows, for people who cannot glance at it; HTML only.
        words: whether the columns hold words, which begin at the left, and not figures.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    words: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) not in (1, len(self.header)):
                raise ValueError(f"a row has {len(row)} cells under a header of {len(self.header)}: {row}")

    def to_text(self) -> str:
        """Lay out the first column to the left, the others to the right, in columns as wide as they need."""
        rows = [[_in_one_line(cell) for cell in row] for row in (self.header, *self.rows)]
        full = [row for row in rows if len(row) == len(self.header)]
        widths = [max(map(len, column)) for column in zip(*full, strict=True)]
        return "\n".join(self._aligned(row, widths) for row in rows)

    def _aligned(self, row: list[str], widths: list[int]) -> str:
        if len(row) == 1:
            return row[0]
        justify = str.ljust if self.words else str.rjust
        cells = [justify(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return _GAP.join([row[0].ljust(widths[0]), *cells]).rstrip()

    __repr__ = to_text

    def _repr_html_(self) -> str:
        """Write rows and columns with header cells of their own, so that a screen reader names both."""
        caption = f"<caption>{_html(self.caption)}</caption>" if self.caption else ""
        # An empty corner is no header of anything.
        style = f' style="{_LEFT}"' if self.words else ""
        columns = (f'<th scope="col"{style}>{_html(name)}</th>' if name else "<td></td>" for name in self.header)
        rows = []
        for name, *cells in self.rows:
            scope = 'scope="row"' if cells else f'scope="rowgroup" colspan="{len(self.header)}"'
            values = "".join(f"<td{style}>{_html(cell)}</td>" for cell in cells)
            rows.append(f'<tr><th {scope} style="{_LEFT}">{_html(name)}</th>{values}</tr>')
        head, body = "".join(columns), "".join(rows)
        return f'<table class="{NO_MATHEMATICS}">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _in_one_line(cell: str) -> str:
    return printable(" ".join(cell.split()))


def _html(cell: str) -> str:
    return html.escape(_in_one_line(cell))
