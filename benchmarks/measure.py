"""What the benchmarks share: contestants take turns, medians are compared, tables are Markdown."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence


def alternate(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each contestant measured in each round. Every other round is run backwards, so that no order is favoured.

    Args:
        contestants: by name, a function that does its work once and returns what it measured, in any unit.
        rounds: how often each is called.
    """
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            measured[name].append(contestants[name]())
            say(f"round {number + 1} of {rounds}: {name} {measured[name][-1]:.4g}")
    return measured


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each contestant's rounds."""
    return {name: statistics.median(values) for name, values in measured.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits."""
    lines = [list(header), ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def say(text: str) -> None:
    """Progress, for a person who waits."""
    print(text, file=sys.stderr, flush=True)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
