"""Writes large numbers in a few digits."""

from __future__ import annotations


def short(value: float) -> str:
    """Return a count with three digits: `1,234`, `56.7 k`, `8.9 M`."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g} {letter}"
    return f"{value:,.0f}"
