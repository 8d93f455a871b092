"""Sees how busy other processes keep the cores, and has PyTorch's threads wait for each other accordingly.

Where cores are free, a thread that waits does best to spin until the others are done, as PyTorch's do for milliseconds.
Where they are not, the spinning thread holds the very core that the one it waits for needs: a step of 0.03 s can take
seconds. How threads wait changes nothing about what they compute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tinker_utils.local.engine.compat import sleep_while_waiting

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if sys.platform == "linux" else 1
_IDLE_FIELDS = (3, 4)  # of a core's line in /proc/stat: idle, and idle while a disk is waited for

_CROWDED, _FREE = 0.5, 0.25
"""Cores that are missing for every thread to have one: above the one threads wait asleep, below the other they spin."""


class _Moment(NamedTuple):
    """Seconds: the clock, and what all processes, and this one alone, have computed."""

    clock: float
    all: float
    own: float


class Neighbours:
    """The other processes on the cores that this one may use; without /proc/stat there are none.

    Args:
        threads: how many threads this process computes with.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
        self._before = self._now()
        self._alone: threading.Event | None = None

    @property
    def crowded(self) -> bool:
        """Return whether threads wait asleep."""
        return self._alone is not None

    def look(self) -> None:
        """Look at the time since the last look, and have threads wait accordingly from now on; call it every second."""
        before, now = self._before, self._now()
        if before is None or now is None or self._threads < 2 or now.clock <= before.clock:
            return
        others = (now.all - before.all - (now.own - before.own)) / (now.clock - before.clock)
        self.decide(others)
        self._before = now

    def decide(self, others: float) -> None:
        """Have threads wait as it suits so many cores that are busy with others."""
        missing = self._threads + others - len(self._cores)
        if self._alone is None and missing > _CROWDED:
            self._alone = threading.Event()
            sleep_while_waiting(self._alone, len(self._cores) + 1)
        elif self._alone is not None and missing < _FREE:
            self._alone.set()
            self._alone = None

    def _now(self) -> _Moment | None:
        try:
            lines = _STAT.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        busy = 0
        for name, *fields in (line.split() for line in lines if line.startswith("cpu")):
            if name != "cpu" and int(name.removeprefix("cpu")) in self._cores:
                # Guests are counted among users, so the two last fields would count twice.
                busy += sum(int(each) for at, each in enumerate(fields[:8]) if at not in _IDLE_FIELDS)
        return _Moment(time.monotonic(), busy / _TICKS, time.process_time())
