"""Decodes the train lines of a large metrics file many at a time.

A run writes its train records with the same keys in the same order, so that their lines differ in digits only. One
line is decoded by `json` and gives the shape; the numbers of all lines of that shape are then read by array operations,
several times as fast. Lines of any other shape are left to `json`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tinker_utils.metrics_log import FloatArray, Record
from tinker_utils.strict_json import parse_json

Bytes = NDArray[np.uint8]
Positions = NDArray[np.intp]

_NUMBER_CHARACTERS = b"0123456789+-.eE"
_FIELD = re.compile(rb'([{\s]*"(\w+)"\s*:\s*)-?[0-9][0-9.eE+-]*([}\s]*)')
_COMMA, _NEWLINE, _ZERO, _DOT, _MINUS, _PLUS, _EXPONENT = np.frombuffer(b",\n0.-+e", np.uint8)
_LOWER_CASE = np.uint8(0x20)  # the bit by which e differs from E
# The widest number that is read here: a float64 takes at most 24 characters.
_WIDEST = 24
# Powers of ten by column, counted from the right: 18 digits fit into an int64, those before them must be zeros.
_DIGITS = 18
_POWERS = np.array([10**k if k < _DIGITS else 0 for k in reversed(range(_WIDEST))], dtype=np.int64)

_EXACT_EXPONENT = 22  # the largest power of ten that a float64 holds exactly


@dataclass(frozen=True)
class _Slot:
    """Where a number stands in a line."""

    field: int  # the how-manieth of the comma-separated fields, from 0
    before: int  # characters of that field before the number: brace, key, colon, spaces
    after: int  # characters of that field after the number: spaces, brace


@dataclass(frozen=True)
class LineShape:
    """What lines with the same keys in the same order have in common."""

    record: Record  # one such line, decoded
    skeleton: bytes  # a line without the characters that numbers are made of
    fields: int
    slots: dict[str, _Slot]

    @classmethod
    def of(cls, line: bytes, names: Container[str]) -> LineShape | None:
        """The shape of a train line, with slots for the numbers called `names`; None for any other line."""
        try:
            record = parse_json(line)
        except ValueError:
            return None
        fields = line.split(b",")
        # A comma that separates nothing (in a text, in a list) would shift every later field.
        if not isinstance(record, dict) or record.get("type") != "train" or len(record) != len(fields):
            return None
        matches = ((i, _FIELD.fullmatch(field)) for i, field in enumerate(fields))
        slots = {m[2].decode(): _Slot(i, len(m[1]), len(m[3])) for i, m in matches if m}
        if "step" not in slots:
            return None
        skeleton = line.translate(None, _NUMBER_CHARACTERS)
        return cls(record, skeleton, len(fields), {name: slot for name, slot in slots.items() if name in names})

    def split(self, block: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
        """(the lines of `block` that have this shape, [(index from 0, line)] of the others).

        `block` and the first part of the result consist of whole lines, each with its newline.
        """
        skeletons = block.translate(None, _NUMBER_CHARACTERS).split(b"\n")[:-1]
        others = [i for i, skeleton in enumerate(skeletons) if skeleton != self.skeleton]
        if not others:
            return block, []
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + 1
        bounds = [(int(ends[i - 1]) if i else 0, int(ends[i])) for i in others]
        keep = zip([0, *(end for _, end in bounds)], [*(begin for begin, _ in bounds), len(block)], strict=True)
        alike = b"".join(itertools.starmap(lambda begin, end: block[begin:end], keep))
        return alike, [(i, block[begin : end - 1]) for i, (begin, end) in zip(others, bounds, strict=True)]

    def columns(self, lines: bytes) -> dict[str, FloatArray]:
        """The numbers in `lines`, which all have this shape, as {name: array of shape [lines]}.

        Each is within two units in the last place of what `float` gives.

        Raises:
            ValueError: a number is not written as JSON writes it, or takes more than these operations can do.
        """
        # Numbers are read through windows that reach back from their ends, so the first line needs room before it.
        text = np.frombuffer(bytes(_WIDEST) + lines, np.uint8)
        ends = np.flatnonzero((text == _COMMA) | (text == _NEWLINE)).reshape(-1, self.fields)
        begins = np.concatenate([[_WIDEST], ends.ravel()[:-1] + 1]).reshape(-1, self.fields)
        return {
            name: _numbers(text, begins[:, slot.field] + slot.before, ends[:, slot.field] - slot.after)
            for name, slot in self.slots.items()
        }


def shape_of_first(lines: Iterable[bytes], names: Container[str]) -> LineShape | None:
    """The shape of the first train line among `lines`."""
    return next((shape for shape in (LineShape.of(line, names) for line in lines) if shape), None)


def _numbers(text: Bytes, begins: Positions, ends: Positions) -> FloatArray:
    """The numbers that stand in `text` from `begins` to `ends`, all of shape [numbers]."""
    negative = text[begins] == _MINUS
    begins = begins + negative
    window, inside = _windows(text, begins, ends)
    width = window.shape[1]
    digits = (window - _ZERO) * inside  # wraps, so that every other character is above 9
    row, column = np.divmod(np.flatnonzero(digits > 9), width)
    dot = window[row, column] == _DOT
    scientific = np.unique(row[~dot])
    digits[row, column] = 0
    digits[scientific] = 0
    values = _decimals(digits, row[dot], width - 1 - column[dot])
    if len(scientific):
        values[scientific] = _scientific(text, begins[scientific], ends[scientific])
    return np.where(negative, -values, values)


def _windows(text: Bytes, begins: Positions, ends: Positions) -> tuple[Bytes, NDArray[np.bool_]]:
    """The characters that end at `ends` as rows of one width, and which of them do not lie before `begins`."""
    lengths = ends - begins
    width = int(lengths.max())
    if width > _WIDEST or lengths.min() < 1 or (np.minimum(text[begins], text[ends - 1]) < _ZERO).any():
        raise ValueError("a number is too wide, or begins or ends with another character than a digit")
    return sliding_window_view(text, width)[ends - width], np.arange(width) >= width - lengths[:, None]


def _decimals(digits: Bytes, row: Positions, places: Positions) -> FloatArray:
    """Digits of shape [numbers, width] as floats; number `row[i]` has a dot, a zero here, before `places[i]` digits."""
    width = digits.shape[1]
    if digits[:, : max(width - _DIGITS, 0)].any() or (np.diff(row) == 0).any():
        raise ValueError("a number has too many digits, or two dots")
    total = digits.astype(np.int64) @ _POWERS[-width:]
    decimals = np.zeros(len(digits))
    decimals[row] = places
    divisor = np.ones(len(digits), np.int64)
    divisor[row] = 10 ** np.minimum(places + 1, _DIGITS)  # the dot takes a column
    whole, fraction = np.divmod(total, divisor)
    return whole + fraction / 10.0**decimals


def _scientific(text: Bytes, begins: Positions, ends: Positions) -> FloatArray:
    """Numbers written as 2.5e-05."""
    window, inside = _windows(text, begins, ends)
    is_exponent = ((window | _LOWER_CASE) == _EXPONENT) & inside
    if not is_exponent.any(axis=1).all():
        raise ValueError("a number contains another character than digits, a dot and an exponent")
    exponent_at = ends - window.shape[1] + is_exponent.argmax(axis=1)
    mantissa = _numbers(text, begins, exponent_at)
    exponent = _numbers(text, exponent_at + 1 + (text[exponent_at + 1] == _PLUS), ends)
    if (np.abs(exponent) > _EXACT_EXPONENT).any():
        raise ValueError("a number is too large or too small to be read exactly here")
    # Negative powers of ten are not exact: so divide by the positive ones.
    return mantissa * 10.0 ** np.maximum(exponent, 0) / 10.0 ** np.maximum(-exponent, 0)
