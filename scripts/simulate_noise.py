"""What the errors of evaluations are worth, on made-up validation sets whose true loss is known exactly.

    python scripts/simulate_noise.py          # the tables of docs/noise.md, about two minutes

The examples are as unlike each other as those of real chats: lengths log-normal (a few long answers make up most of the
tokens), longer answers easier per token, some answers several times as hard as others, and the tokens of one answer
The examples are as unlike each other as those of real chats: lengths log-normal (a few long answers hold most of the
The package's own `pool`, `paired_difference` and `EarlyStopping` are put to the test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.loss import PooledLoss, paired_difference, pool

Array = NDArray[np.float64]

_LENGTHS = np.arange(4, 1025)
_MEDIAN_LENGTH, _SPREAD = 55.0, 1.0  # of the logarithm
_HARDNESS = 4.0  # shape of the gamma distribution: answers differ by half their loss
_WOBBLE = 0.15  # nats per token by which an example moves between evaluations, Student's t with 5 degrees
_MEMORY = 0.5  # how much of that it keeps until the next
EVALUATIONS = 40


def _length_shares() -> Array:
    shares = np.exp(-0.5 * (np.log(_LENGTHS / _MEDIAN_LENGTH) / _SPREAD) ** 2) / _LENGTHS
    return shares / shares.sum()


_SHARES = _length_shares()


def _rate(lengths: Array) -> Array:
    """Mean nats per token of answers of these lengths."""
    return 2.0 * (lengths / 50.0) ** -0.25


# Pooled over the whole population: nats over tokens, both of which are finite sums.
TRUE_LOSS = float((_SHARES * _LENGTHS * _rate(_LENGTHS)).sum() / (_SHARES * _LENGTHS).sum())


class ValidationSet:
    """Examples drawn from the population, and their losses at one evaluation after the other."""

    def __init__(self, examples: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self.lengths = rng.choice(_LENGTHS, size=examples, p=_SHARES).astype(np.float64)
        hardness = rng.gamma(_HARDNESS, 1 / _HARDNESS, examples)
        tokens = np.sqrt(self.lengths) * 1.5 * rng.standard_normal(examples)
        self._base = self.lengths * _rate(self.lengths) * hardness + tokens
        self._moved = self._shock()

    def totals(self, shift: float) -> Array:
        """Nats of each example at the next evaluation, when the model's true loss is TRUE_LOSS + shift; [examples]."""
        self._moved = _MEMORY * self._moved + math.sqrt(1 - _MEMORY**2) * self._shock()
        return self._base + self.lengths * (shift + self._moved)

    def _shock(self) -> Array:
        return _WOBBLE * self._rng.standard_t(5, len(self.lengths)) / math.sqrt(5 / 3)


def coverage(examples: int, sets: int, seed: int) -> tuple[float, float, float]:
    """The share of validation sets whose 95% band holds the truth.

    That is: the band of a loss, that of a paired difference of -0.03, and for comparison the band that 1.96 standard
    errors would make of the loss, as if every example weighed the same.
    """
    rng = np.random.default_rng(seed)
    held = [0, 0, 0]
    for _ in range(sets):
        drawn = ValidationSet(examples, rng)
        before, after = drawn.totals(0.0), drawn.totals(-0.03)
        loss, difference = pool(before, drawn.lengths), paired_difference(after, before, drawn.lengths)
        held[0] += _within(loss, TRUE_LOSS, loss.margin)
        held[1] += _within(difference, -0.03, difference.margin)
        held[2] += _within(loss, TRUE_LOSS, loss.stderr and 1.96 * loss.stderr)
    return held[0] / sets, held[1] / sets, held[2] / sets


def _within(estimate: PooledLoss, truth: float, margin: float | None) -> bool:
    assert estimate.loss is not None
    assert margin is not None
    return abs(estimate.loss - truth) <= margin


@dataclass(frozen=True)
class Outcomes:
    """What became of many runs of 40 evaluations under one setting.

    Attributes:
        stopped: share of runs that were stopped at all.
        stopped_before: share that were stopped before evaluation 12.
        last: the median run's last evaluation.
        lost: nats per token, on average, by which the kept evaluation is truly worse than the best that 40 would give.
    """

    stopped: float
    stopped_before: float
    last: float
    lost: float


def outcomes(
    truth: Sequence[float], examples: int, patience: int, threshold: float, significance: float | None,
    runs: int, seed: int,
) -> Outcomes:  # fmt: skip
    """Runs whose true loss is TRUE_LOSS + truth[t] at evaluation t, each on a validation set of its own."""
    rng = np.random.default_rng(seed)
    ends = [_run(truth, examples, EarlyStopping(patience, threshold, significance), rng) for _ in range(runs)]
    last = [end for end, _ in ends]
    return Outcomes(
        stopped=sum(end < len(truth) for end in last) / runs,
        stopped_before=sum(end < 12 for end in last) / runs,
        last=median(last),
        lost=float(np.mean([truth[best - 1] - min(truth) for _, best in ends])),
    )


def _run(truth: Sequence[float], examples: int, stopper: EarlyStopping, rng: np.random.Generator) -> tuple[int, int]:
    """(last evaluation, best evaluation), both from 1."""
    drawn = ValidationSet(examples, rng)
    anchor: Array | None = None
    for number, shift in enumerate(truth, start=1):
        totals = drawn.totals(shift)
        error = None if anchor is None else paired_difference(totals, anchor, drawn.lengths).stderr
        decision = stopper.update(pool(totals, drawn.lengths).loss, number, error)
        if decision.improved:
            anchor = totals
        if decision.stop:
            break
    return number, stopper.best_step or number


def flat(evaluation: int) -> float:
    """Nothing is learned any more."""
    return 0.0


def gaining(evaluation: int) -> float:
    """0.01 nats better at each evaluation, to the end."""
    return -0.01 * evaluation


def turning(evaluation: int) -> float:
    """Learning that slows down, a minimum at the twelfth evaluation, then overfitting of 0.02 nats at each."""
    return 0.5 * 0.75**evaluation if evaluation <= 12 else 0.5 * 0.75**12 + 0.02 * (evaluation - 12)


SETTINGS: tuple[tuple[float, float | None], ...] = ((0.0, None), (0.01, None), (0.0, 1.0), (0.0, 2.0))


def curve(shape: Callable[[int], float]) -> list[float]:
    """A shape at each of the evaluations."""
    return [shape(number) for number in range(1, EVALUATIONS + 1)]


def main() -> None:
    """Print both tables, in Markdown."""
    print("| examples | band of a loss | of a paired difference | 1.96 errors of a loss |\n|---:|---:|---:|---:|")
    for examples in (40, 80, 300, 1000):
        loss, difference, normal = coverage(examples, 10_000, seed=examples)
        print(f"| {examples:,} | {loss:.1%} | {difference:.1%} | {normal:.1%} |")
    print(
        "\n| examples | threshold | significance | patience | flat: last | flat: never stopped | gaining: stopped | "
        f"turning: stopped too early | turning: last | turning: lost |\n|{'---:|' * 10}"
    )
    for examples in (80, 300):
        for threshold, significance in SETTINGS:
            for patience in (3, 5):
                setting = (examples, patience, threshold, significance, 500, 1)
                idle, better, turned = (outcomes(curve(shape), *setting) for shape in (flat, gaining, turning))
                asked = "–" if significance is None else f"{significance:g}"
                print(
                    f"| {examples} | {threshold:g} | {asked} | {patience} | {idle.last:g} | {1 - idle.stopped:.0%} | "
                    f"{better.stopped:.0%} | {turned.stopped_before:.0%} | {turned.last:g} | {turned.lost:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
