"""How long a service usually takes to answer, and so when an answer is overdue."""

from __future__ import annotations

from collections import deque
from statistics import median

_REMEMBERED = 9
# No answer is called overdue before this many seconds, nor before it took this many times as long as usual: a cycle of
# the hosted service alone takes ten seconds, and nobody wants to be told of each.
LEAST_SECONDS = 4.0
_TIMES_THE_USUAL = 3.0


class AnswerTimes:
    """Learns from the time that steps take how long other requests may take."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def took(self, seconds: float, tokens: int) -> None:
        """A step of so many tokens was answered after so many seconds of waiting."""
        self._steps.append((seconds, tokens))

    def overdue_after(self, tokens: int) -> float:
        """Seconds of waiting after which the answer to a request of so many tokens is overdue.

        A request of more tokens than the usual step, such as an evaluation, may take longer in proportion.
        """
        if not self._steps:
            return LEAST_SECONDS
        usual_seconds = median(seconds for seconds, _ in self._steps)
        usual_tokens = median(tokens for _, tokens in self._steps)
        return max(LEAST_SECONDS, _TIMES_THE_USUAL * usual_seconds * max(1.0, tokens / max(usual_tokens, 1)))
