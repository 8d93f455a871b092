"""JSON without its traps: every failure is a `ValueError`, and nothing is nested so deeply that using it fails."""

from __future__ import annotations

import json
from typing import Any

# Python's own bound is its stack: what was just shallow enough to be read would be too deep to be written or shown.
_MAX_DEPTH = 100


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is not JSON, not UTF-8, holds a number of thousands of digits, or is nested over 100 levels deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if _openings(text) > _MAX_DEPTH and _is_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


def json_problem(error: ValueError) -> str:
    """Return why a text is not JSON, in a few words."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


_TOO_DEEP = f"it is nested over {_MAX_DEPTH} levels deep"


def _openings(text: str | bytes) -> int:
    """Return how many brackets are opened, or stand in texts: no text is nested more deeply."""
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
