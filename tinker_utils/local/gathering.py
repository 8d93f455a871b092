"""Requests that wait for the same sampler are drawn together: whichever comes first takes the others along."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from .base import Base
from .faults import RequestError
from .queries import SampleQuery
from .sampling import SampleOutput, check

MAX_ROWS = 64
"""Sequences drawn at the same time."""

MAX_PROMPT_TOKENS = 16_384
"""Prompt tokens that go through the model at the same time, padding included."""

QUIET_S, SETTLE_LIMIT_S = 0.01, 0.2
"""Drawing begins when no request has come for so long, or when it has waited so long in all."""

Draw = Callable[[Sequence[SampleQuery]], list[SampleOutput]]


class Gathering:
    """The waiting queries of one sampler, by their sequence numbers.

    They are added on the event loop and taken on the compute thread.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._waiting: dict[int, SampleQuery] = {}
        self._outcomes: dict[int, SampleOutput] = {}
        self._lock = threading.Lock()

    def add(self, number: int, query: SampleQuery) -> None:
        """Let a query wait for its turn, or for an earlier one's."""
        with self._lock:
            self._waiting[number] = query

    def take(self, number: int, draw: Draw) -> SampleOutput:
        """The outcome of a query: drawn now, with others that wait, unless an earlier one took it along."""
        if number not in self._outcomes:
            self._settle()
            queries = self._together(number)
            with self._lock:
                del self._waiting[number]
            # If this fails, the others are still there, and each has its own turn.
            self._outcomes.update(zip(queries, draw(list(queries.values())), strict=True))
            with self._lock:
                for each in queries:
                    self._waiting.pop(each, None)
        return self._outcomes.pop(number)

    def _settle(self) -> None:
        """Let the requests of one client's loop arrive: those that come too late cost a whole pass of their own."""
        end, count = time.monotonic() + SETTLE_LIMIT_S, 0
        while count < len(self._waiting) and time.monotonic() < end:
            count = len(self._waiting)
            time.sleep(QUIET_S)

    def _together(self, first: int) -> dict[int, SampleQuery]:
        """The query, and others that wait, fit in with it and can be served."""
        with self._lock:
            waiting = dict(self._waiting)
        query = waiting.pop(first)
        queries, rows, width = {first: query}, query.count, len(query.prompt)
        for number, other in waiting.items():
            width = max(width, len(other.prompt))
            if rows + other.count > MAX_ROWS or (len(queries) + 1) * width > MAX_PROMPT_TOKENS:
                break
            with contextlib.suppress(RequestError):  # its own turn will tell
                check(self._base, other)
                queries[number] = other
                rows += other.count
        return queries
