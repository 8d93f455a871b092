"""A small version of scripts/simulate_noise.py: what bands cover, and what noise alone does to a stop."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulate_noise.py"


@pytest.fixture(scope="module")
def noise():
    spec = importlib.util.spec_from_file_location("simulate_noise", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_noise"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulate_noise"]


@pytest.mark.parametrize(("examples", "sets"), [(80, 3000), (300, 2000), (1000, 1000)])
def test_bands_cover_the_truth_as_often_as_they_say(noise, examples, sets):
    # Between 93% and 97%, give or take three binomial standard errors of the simulation itself.
    slack = 3 * math.sqrt(0.95 * 0.05 / sets)
    for covered in noise.coverage(examples, sets, seed=7)[:2]:
        assert 0.93 - slack <= covered <= 0.97 + slack


def test_significance_takes_less_noise_for_an_improvement_and_stops_more_slow_gains(noise):
    def run(shape, significance):
        return noise.outcomes(noise.curve(shape), 80, 3, 0.0, significance, runs=100, seed=3)

    # Shares of 100 runs have standard errors of at most 0.05, differences of two of at most 0.071: three are 0.21.
    plain, strict = run(noise.flat, None), run(noise.flat, 2.0)
    assert strict.last < plain.last, "a run that learns nothing ends sooner"
    assert run(noise.gaining, 2.0).stopped_before > run(noise.gaining, None).stopped_before + 0.21
    # The settings see the same runs: where no gain is luck, a stop can only come sooner.
    assert run(noise.turning, 2.0).last <= run(noise.turning, None).last


def test_the_true_loss_is_that_of_a_very_large_sample(noise):
    import numpy as np

    drawn = noise.ValidationSet(400_000, np.random.default_rng(5))
    pooled = noise.pool(drawn.totals(0.25), drawn.lengths)
    assert pooled.loss == pytest.approx(noise.TRUE_LOSS + 0.25, abs=4 * pooled.stderr)
    assert pooled.stderr < 0.005
