from __future__ import annotations

import math

import numpy as np
import pytest

from tinker_utils.loss import PooledLoss, disagreement, negative_log_likelihood, paired_difference, perplexity, pool


def test_only_weighted_tokens_count():
    assert negative_log_likelihood([-1.0, -2.0, -4.0], [0.0, 1.0, 1.0]) == 6.0


def test_an_impossible_prompt_token_does_no_harm():
    assert negative_log_likelihood([-math.inf, -2.0, math.nan], [0.0, 1.0, 0.0]) == 2.0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shape"):
        negative_log_likelihood([-1.0], [1.0, 1.0])


def test_pooling_weights_tokens_not_examples():
    # 3.0 nats on 10 tokens and 1.0 on 1,000: (30 + 1000) / 1010, a perplexity of 2.77 where a mean of means gives 7.39.
    pooled = pool([30.0, 1000.0], [10, 1000])
    assert pooled.loss == pytest.approx(1030 / 1010)
    assert round(pooled.perplexity, 2) == 2.77
    assert round(math.exp((3.0 + 1.0) / 2), 2) == 7.39


def test_the_loss_does_not_depend_on_how_examples_fall_into_batches():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 50, 30)
    totals = rng.exponential(2.0, 30) * tokens
    halves = [pool(totals[:7], tokens[:7]), pool(totals[7:], tokens[7:])]
    whole = pool(totals, tokens)
    assert sum(h.total for h in halves) / sum(h.completion_tokens for h in halves) == pytest.approx(whole.loss)


def test_without_completion_tokens_there_is_no_value():
    assert PooledLoss(0.0, 0).loss is None
    assert PooledLoss(0.0, 0).perplexity is None
    assert pool([], []).loss is None


def test_the_standard_error_by_hand():
    # r = 10/5 = 2; residuals 2 - 2·2, 8 - 2·3 = -2, 2; se² = 2/1 · (4 + 4) / 25.
    assert pool([2.0, 8.0], [2, 3]).stderr == pytest.approx(math.sqrt(16 / 25))
    assert pool([2.0], [2]).stderr is None
    assert pool([math.nan, 1.0], [1, 1]).stderr is None


def test_the_band_is_wider_where_few_long_examples_decide():
    """Student's t by the tables: 2.262 at 9 degrees of freedom, 2.571 at 5, 3.182 at 3."""
    rng = np.random.default_rng(3)
    for equal, quantile, tolerance in ((10, 2.262, 0.001), (6, 2.571, 0.001), (5, 2.776, 0.001), (4, 3.182, 0.004)):
        pooled = pool(rng.gamma(2.0, 1.0, equal), [1] * equal)
        assert pooled.margin / pooled.stderr == pytest.approx(quantile, abs=tolerance)
    # 25 + 75 examples of 9 and 1 tokens weigh as (225 + 75)² / (25·81 + 75) = 42.86 equal ones: t(41.86) = 2.018.
    pooled = pool(rng.gamma(2.0, 1.0, 100), [9] * 25 + [1] * 75)
    assert pooled.margin / pooled.stderr == pytest.approx(2.018, abs=0.001)
    assert pool([1.0, 2.0, 3.0], [1, 1, 1]).margin is None


def test_the_standard_error_is_the_spread_of_repeated_samples():
    """Against the truth: the spread of r over many validation sets drawn from the same population."""
    rng = np.random.default_rng(1)
    losses, errors = [], []
    for _ in range(2000):
        tokens = rng.integers(5, 60, 80)
        totals = tokens * rng.gamma(4.0, 0.5, 80)
        pooled = pool(totals, tokens)
        losses.append(pooled.loss)
        errors.append(pooled.stderr)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.06)


def test_a_paired_difference_by_hand():
    # Differences 1 and -2 over 2 and 3 tokens: d = -1/5; residuals 1.4 and -1.4; se² = 2/1 · 3.92 / 25.
    difference = paired_difference([3.0, 6.0], [2.0, 8.0], [2, 3])
    assert difference.loss == pytest.approx(-0.2)
    assert difference.stderr == pytest.approx(math.sqrt(2 * (1.4**2 + 1.4**2) / 25))
    assert difference.loss == pytest.approx(pool([3.0, 6.0], [2, 3]).loss - pool([2.0, 8.0], [2, 3]).loss)
    assert paired_difference([3.0], [2.0], [2]).stderr is None


def test_the_error_of_a_paired_difference_is_its_spread_over_repeated_samples():
    """What is hard for both drops out: the error is that of the difference, far below the error of either loss."""
    rng = np.random.default_rng(2)
    differences, errors, own = [], [], []
    for _ in range(2000):
        tokens = rng.integers(5, 60, 80)
        before = tokens * rng.gamma(4.0, 0.5, 80)
        after = before - tokens * rng.normal(0.05, 0.1, 80)
        difference = paired_difference(after, before, tokens)
        differences.append(difference.loss)
        errors.append(difference.stderr)
        own.append(pool(after, tokens).stderr)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.06)
    assert np.mean(differences) == pytest.approx(-0.05, abs=4 * np.std(differences) / math.sqrt(2000))
    assert np.mean(errors) < np.mean(own) / 5


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(1e6) == math.inf
    assert perplexity(0.0) == 1.0


def test_disagreement_is_relative():
    assert disagreement(100.0, 100.1) == pytest.approx(0.1 / 100.1)
    assert disagreement(0.0, 0.0) == 0.0
    assert math.isnan(disagreement(math.nan, 1.0))
