"""The time beside a wall clock that may be set: by a person, by NTP, or to 1970 by an empty battery."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds_gone_by() -> float:
    """Return the seconds since some moment, by a clock that nobody can set; sleep counts where it is known."""
    asleep_too = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if asleep_too is None else time.clock_gettime(asleep_too)


class Clock:
    """Unix seconds by two accounts: the wall clock's, and what it would say had nobody set it since this was made.

    After a jump they differ, and which is right cannot be known here. So what is kept for a time is stamped by the
    `latest` account and over by the `earliest`: while a clock is wrong it may be kept longer, and never shorter.

    Args:
        wall: the wall clock, in Unix seconds; tests pass their own.
        gone_by: seconds that nobody can set; tests pass their own.
    """

    def __init__(self, wall: Callable[[], float] = time.time, gone_by: Callable[[], float] = seconds_gone_by) -> None:
        self.wall = wall
        self.gone_by = gone_by
        self._beginning = wall() - gone_by()

    def earliest(self) -> float:
        """Return the earlier account: the true time is not before it, if one of the two is right."""
        return min(self.wall(), self._beginning + self.gone_by())

    def latest(self) -> float:
        """Return the later account: the true time is not after it, if one of the two is right."""
        return max(self.wall(), self._beginning + self.gone_by())
