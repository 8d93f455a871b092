"""JSON without its traps: every failure is a `ValueError`, and nothing is nested so deeply that using it fails."""

from __future__ import annotations

import json
from typing import Any

import msgspec

# Python's own bound is its stack: what was just shallow enough to be read would be too deep to be written or shown.
_MAX_DEPTH = 100


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is not JSON, not UTF-8, holds a number of thousands of digits, or is nested over 100 levels deep.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        try:
            value = msgspec.json.decode(data)
        except ValueError:  # faster, but of what Python's own decoder takes it refuses NaN, and numbers out of range
            value = json.loads(text)
        too_deep = may_be_too_deep(data) and _depth(value) > _MAX_DEPTH
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested over {_MAX_DEPTH} levels deep")
    return value


def may_be_too_deep(data: bytes) -> bool:
    """Return whether a JSON text may be nested too deeply: no text is nested more deeply than it has brackets."""
    return data.count(b"[") + data.count(b"{") > _MAX_DEPTH


def json_or_none(text: str | bytes) -> Any:
    """Return what a JSON text says; None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def json_problem(error: ValueError) -> str:
    """Return why a text is not JSON, in a few words."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _depth(value: Any) -> int:
    """Return how many lists and objects stand in each other; RecursionError where they are too many to count."""
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
