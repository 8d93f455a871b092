"""Decides how many steps to keep in flight, so that the service never waits for the next one.

Between a step's submission and its answer lie the way there, the wait for the service's next cycle, the work, and the
way back. While that lasts, the service could have begun `latency / pace` steps, where the pace is the time from one
answer to the next. So many must be in flight, and one more for what varies. More would only be trained in vain
when the run ends.

The latency has to be seen without a queue, which adds its own length to it. So from time to time only a few steps are
kept in flight, and the median of their times counts. If they were too few, the pace is slow then, too, which makes
for too small a depth; but at that depth the pace is quicker, which asks for a larger one, until it pays no more.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

# Steps kept in flight while the latency is looked at, for how many answers, and after how many further ones again.
_LOOK_DEPTH = 2
_LOOK_ANSWERS = 5
_LOOK_AGAIN_AFTER = 250
_PACE_ANSWERS = 16
# A latency of a whole number of paces is not measured as one: this much more does not ask for a further step.
_ROUNDING = 0.1


class QueueDepth:
    """Learns from the times of submission and answer.

    Args:
        most: the largest depth; `_LOOK_DEPTH` fixes it there.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = max(most, _LOOK_DEPTH)
        self._latencies: list[float] = []
        self._intervals: deque[float] = deque(maxlen=_PACE_ANSWERS)
        self._answered_at: float | None = None
        self._look_began = -math.inf
        self._until_next_look = 0

    @property
    def depth(self) -> int:
        """Return the steps to keep in flight."""
        if self._looking or not self._intervals:
            return _LOOK_DEPTH
        pace = sum(self._intervals) / len(self._intervals)
        needed = math.ceil(median(self._latencies) / max(pace, 1e-9) - _ROUNDING) + 1
        return min(max(needed, _LOOK_DEPTH), self._most)

    def answered(self, submitted: float, answered: float) -> None:
        """Note that a step was answered; both moments in seconds of one clock."""
        if self._answered_at is not None:
            self._intervals.append(answered - self._answered_at)
        self._answered_at = answered
        if self._looking:
            self._look(submitted, answered)
            return
        self._until_next_look -= 1
        if self._until_next_look <= 0:
            self._latencies, self._look_began = [], answered

    @property
    def _looking(self) -> bool:
        return len(self._latencies) < _LOOK_ANSWERS

    def disturbed(self) -> None:
        """Note that something other than steps took time: what lies between the last answer and the next is no pace."""
        self._answered_at = None

    def _look(self, submitted: float, answered: float) -> None:
        # What was submitted into a longer queue, before the look began, says nothing.
        if submitted < self._look_began:
            return
        self._latencies.append(answered - submitted)
        if not self._looking:
            self._until_next_look = _LOOK_AGAIN_AFTER
