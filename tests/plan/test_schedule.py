from __future__ import annotations

import pytest

from tinker_utils.plan.estimate import learning_rate, warmup_steps


def rates(schedule: str, total: int = 10, warmup: int = 4) -> list[float]:
    return [learning_rate(step, total, 1.0, warmup, schedule) for step in range(1, total + 1)]


def test_the_warm_up_takes_its_share_rounded_up():
    assert warmup_steps(9_924, 0.03) == 298  # 297.72
    assert warmup_steps(10, 0) == 0
    assert warmup_steps(3, 0.99) == 3


def test_warm_up_rises_by_equal_parts_to_the_peak():
    assert rates("constant")[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates("constant")[4:] == [1.0] * 6


def test_linear_decay_would_reach_zero_one_step_after_the_last():
    assert rates("linear")[4:] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])


def test_cosine_is_at_half_the_peak_half_way():
    decay = rates("cosine", total=10, warmup=1)
    assert decay[5] == pytest.approx(0.5)  # 5 of 10 intervals
    assert decay == sorted(decay, reverse=True)
    assert decay[-1] > 0


def test_no_step_is_spent_at_rate_zero_without_a_warm_up():
    assert learning_rate(1, 1, 2e-4, 0, "linear") == pytest.approx(1e-4)
    assert learning_rate(1, 5, 2e-4, 0, "constant") == 2e-4
