"""Long series with as few points as a panel has room for, and without what cannot be drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinker_utils.run.series import FloatArray

_BINS = 450  # a panel is about 900 pixels wide
# matplotlib fails on axes that end near the largest float (1.8e308): it adds margins, squares and takes powers of ten
# beyond them. No loss that means anything is larger than this, so what is has no place in the picture, like NaN.
MAX_DRAWN = 1e100


def drawable(values: FloatArray) -> FloatArray:
    """Return the same with NaN, a gap in the line, in place of what is infinite or too large."""
    return np.where(np.abs(values) <= MAX_DRAWN, values, np.nan)


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
