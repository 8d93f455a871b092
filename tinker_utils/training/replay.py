"""Proves a resume: steps that are run again from a checkpoint must give the losses that they gave the first time.

The first of them is taken with the weights of the checkpoint alone, so it proves these. What the later ones give hangs
on the optimizer, too: without its moments a step goes another way. Measured with the packaged model, 4 and 16 examples
a step, learning rates from 2e-5 to 2e-4: a lost optimizer moves one of the next two losses by 1e-4 to 2e-2 nats per
token, and a service that computes alike each time by nothing at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from tinker_utils.run.state import FollowingStep

# Nats by which one token's loss may differ from one pass to the next, in half precision and batches of other company;
# the mean over n tokens by this over √n.
_NOISE_OF_A_TOKEN = 0.1
# A service whose first loss comes back within the first bound, in nats per token, computes alike each time, and the
# later ones stay within the second: rounding grows from step to step, in another order of adding up it reached 1e-6.
_ALIKE, _ALIKE_LATER = 5e-6, 5e-5


class Replay:
    """The steps behind a checkpoint, run again.

    Args:
        before: what they gave the first time, in their order.
    """

    def __init__(self, before: Iterable[FollowingStep]) -> None:
        self._before = deque(before)
        self._noise: float | None = None

    def compare(self, now: FollowingStep, completion_tokens: int) -> str | None:
        """Compare the next step; returns what the service did not restore, in a sentence, once that is seen."""
        before = self._before.popleft() if self._before else None
        if before is None or before.step != now.step:  # one of the two is skipped: from here on it is another run
            self._before.clear()
            return None
        apart, bound = abs(now.loss - before.loss), _NOISE_OF_A_TOKEN / math.sqrt(completion_tokens)
        first = self._noise is None
        if self._noise is None:
            self._noise = apart
        else:
            bound = _ALIKE_LATER if self._noise <= _ALIKE else max(bound, 5 * self._noise)
        if apart > bound or now.learning_rate != before.learning_rate:
            self._before.clear()
        if apart <= bound:
            return None
        lost = (
            "the weights were not restored; look at the next evaluation before you go on, or start a new run."
            if first
            else "the weights were restored, but not the optimizer's state; training.resume_warmup_steps would begin "
            "with small steps after a resume."
        )
        return (
            f"Step {now.step} is run again and gives a loss of {now.loss:.6g} nats per token, where it had given "
            f"{before.loss:.6g}: {lost}"
        )
