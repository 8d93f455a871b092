from __future__ import annotations

import math
from pathlib import Path

import pytest

from tinker_utils.metrics import MetricsLog
from tinker_utils.result import TrainingResult
from tinker_utils.study import Estimate, StudyRun, difference, estimate
from tinker_utils.study_plot import describe_study, study_figure


def run(variant: str, seed: int, losses: list[float], may_stop: bool = False) -> StudyRun:
    """A run evaluated every 10 steps."""
    log = MetricsLog()
    for i, loss in enumerate(losses, start=1):
        log.add({"type": "val", "step": 10 * i, "epoch": 1, "val_loss": loss, "completion_tokens": 5})
    best = min(losses)
    steps = 10 * len(losses)
    result = TrainingResult("completed", "", Path("x"), steps, 0, 0, 10 * losses.index(best) + 10, best, None, None)
    return StudyRun(variant, seed, may_stop, result, log)


RUNS = [
    run("was", 0, [3.0, 1.0, 2.0]),
    run("was", 1, [3.0, 2.0, 4.0]),
    run("stops", 0, [3.0, 1.0, 1.5], may_stop=True),
    run("stops", 1, [3.0, 2.0], may_stop=True),
]


def test_a_run_that_may_stop_hands_over_its_best_weights_and_another_its_last():
    assert [r.kept_val_loss for r in RUNS] == [2.0, 4.0, 1.0, 2.0]
    assert [r.final_val_loss for r in RUNS] == [2.0, 4.0, 1.5, 2.0]


def test_an_estimate_is_a_mean_and_its_standard_error():
    assert Estimate.of([1.0, 3.0]) == Estimate(2.0, pytest.approx(math.sqrt(2.0) / math.sqrt(2)))
    assert math.isnan(Estimate.of([1.0]).stderr)
    assert str(Estimate(1.23456, 0.5)) == "1.235 ± 0.500"
    assert estimate(RUNS, "was", lambda r: r.final_val_loss).mean == 3.0


def test_differences_are_paired_by_seed():
    # Per seed -1 and -2: mean -1.5, standard deviation sqrt(0.5), over sqrt(2).
    assert difference(RUNS, "stops", "was", lambda r: r.kept_val_loss) == Estimate(-1.5, pytest.approx(0.5))


def test_the_picture_has_a_line_a_variant_with_means_and_errors():
    axes = study_figure(RUNS).axes[0]
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert lines["was"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 3.0]]
    assert lines["stops"].get_xydata().tolist() == [[10, 3.0], [20, 1.5], [30, 1.5]]
    assert "was: lowest mean validation loss 1.500 at step 20, 3.000 at the last step 30" in describe_study(RUNS)
