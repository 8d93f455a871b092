"""Sums and logprobs → per-token loss, perplexity and standard error, pooled over whole batches and whole sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_Z975 = 1.959964  # the 97.5% quantile of the normal distribution


def negative_log_likelihood(logprobs: ArrayLike, weights: ArrayLike) -> float:
    """Return weighted negative log-likelihood of one example in nats: -sum of weight · logprob.

    Args:
        logprobs: log-probability of each target token, shape [n].
        weights: weight of each target token, shape [n]; where it is 0 the logprob is not looked at, so that an
            infinite one of a prompt token does no harm.

    Raises:
        ValueError: the shapes differ.
    """
    logprob, weight = np.asarray(logprobs, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if logprob.shape != weight.shape:
        raise ValueError(f"logprobs have the shape {logprob.shape}, their weights {weight.shape}; they must be equal")
    counted = weight != 0
    return float(-(logprob[counted] * weight[counted]).sum())


@dataclass(frozen=True)
class PooledLoss:
    """A loss over many examples: the sum of their negative log-likelihoods over the sum of their completion tokens.

    Attributes:
        total: the sum, in nats.
        completion_tokens: the tokens that it is over.
        stderr: standard error of `loss` in nats per token; None where fewer than two examples leave it unknown.
        margin: half the width of its 95% band; None where the examples, counted by their weight, are fewer than four.
    """

    total: float
    completion_tokens: int
    stderr: float | None = None
    margin: float | None = None

    @property
    def loss(self) -> float | None:
        """Return nats per completion token; None without any completion token, never 0."""
        return self.total / self.completion_tokens if self.completion_tokens else None

    @property
    def perplexity(self) -> float | None:
        """Return exp of the pooled loss (not a mean of perplexities); infinite where exp overflows."""
        return None if self.loss is None else perplexity(self.loss)


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite instead of an overflow."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def pool(totals: ArrayLike, completion_tokens: ArrayLike) -> PooledLoss:
    """Pool examples into one loss.

    The standard error is that of a ratio estimate with examples as the units, since the tokens of one example are not
    independent: se² = m / (m - 1) · sum over i of (y_i - r·x_i)² / (sum of x)², with y_i the negative log-likelihood
    and x_i the completion tokens of example i, r = sum y / sum x, m examples (Cochran, "Sampling Techniques", 3rd ed.,
    6.13, without the finite-population correction).

    A few long examples can make up most of the sum; then the error itself is known no better than from a few. So the
    band takes Student's t with one degree of freedom less than the effective number of examples, (sum of x)² / sum of
    x² (Kish, "Survey Sampling", 1965, 8.2). docs/noise.md shows what it covers.

    Args:
        totals: negative log-likelihood of each example in nats, shape [m].
        completion_tokens: completion tokens of each example, shape [m].
    """
    y, x = np.asarray(totals, dtype=np.float64), np.asarray(completion_tokens, dtype=np.float64)
    total, tokens, m = float(y.sum()), int(x.sum()), len(y)
    if not tokens or m < 2:
        return PooledLoss(total, tokens)
    residuals = y - total / tokens * x
    variance = m / (m - 1) * float((residuals**2).sum()) / tokens**2
    if not math.isfinite(variance):
        return PooledLoss(total, tokens)
    stderr, effective = math.sqrt(variance), tokens**2 / float((x**2).sum())
    return PooledLoss(total, tokens, stderr, stderr * t975(effective - 1) if effective >= 4 else None)


def t975(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t to 0.001 from 4 degrees of freedom on, to 0.004 for 3.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z, v = _Z975, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4


def paired_difference(totals: ArrayLike, before: ArrayLike, completion_tokens: ArrayLike) -> PooledLoss:
    """Pool the differences of two losses over the same examples: the difference of two pooled losses, with its error.

    What makes an example hard is in both evaluations and drops out, so the error of the difference is mostly far below
    that of either loss. `loss` equals the difference of the two pooled losses; `stderr` is its error, as in `pool`.

    Args:
        totals: negative log-likelihood of each example in nats, shape [m].
        before: the same at other weights, shape [m].
        completion_tokens: completion tokens of each example, shape [m].
    """
    return pool(np.subtract(totals, before, dtype=np.float64), completion_tokens)


def disagreement(own: float, reported: float) -> float:
    """Return how far a reported sum is from our own, relative to the larger; NaN if either is not finite."""
    return abs(own - reported) / max(abs(own), abs(reported), 1e-12)
