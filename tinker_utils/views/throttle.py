"""Keeps work that nobody waits for to a share of the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Throttle:
    """Work of d seconds, timed by `spending`, puts off what `allows` lets through by d / share seconds.

    So work that waits for `allows()` takes at most `share` of the time. Time without work is not saved up. Work done
    ahead of its time, on credit, is paid back by what comes after it.

    Args:
        share: of the time, in (0, 1).
        wait: seconds until work is allowed first.
        clock: tells the time, in seconds.
        meter: tells what work takes, in seconds: of the processor, unless told otherwise, as a thread that waits for
            its turn takes nothing from others.
    """

    def __init__(
        self,
        share: float,
        wait: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        meter: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._clock = clock
        self._meter = meter
        self._free_at = clock() + wait

    def allows(self, credit: float = 0.0) -> bool:
        """Return whether work may be done now, at most `credit` seconds ahead of its time."""
        return self._free_at - self._clock() <= credit

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Time the work done inside, on this thread."""
        began, before = self._clock(), self._meter()
        try:
            yield
        finally:
            self._free_at = max(self._free_at, began) + (self._meter() - before) / self._share
