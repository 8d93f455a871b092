"""The learning rate of each step: a linear warm-up, then constant, linear or cosine."""

from __future__ import annotations

import math


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Return how many steps the warm-up takes: the ratio's share of all steps, rounded up, and not more than all."""
    return min(total_steps, math.ceil(total_steps * warmup_ratio))


def learning_rate(step: int, total_steps: int, peak: float, warmup: int, schedule: str) -> float:
    """Return the learning rate of step `step` (the first is 1, the last `total_steps`).

    The warm-up rises by peak / warmup a step and reaches the peak at its last step. The decay would reach 0 one step
    after the last, so no step is spent at a rate of 0, neither the first nor the last.

    Raises:
        ValueError: the step is outside the run, or the schedule is unknown.
    """
    if not 1 <= step <= total_steps:
        raise ValueError(f"step {step} is outside the run's 1 to {total_steps}")
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / (total_steps - warmup + 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    raise ValueError(f"the schedule must be constant, linear or cosine, got {schedule!r}")
