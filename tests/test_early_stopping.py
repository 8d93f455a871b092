from __future__ import annotations

import json
import math

import pytest

from tinker_utils.early_stopping import Decision, EarlyStopping


def feed(stopper: EarlyStopping, losses: list[float | None]) -> list[Decision]:
    return [stopper.update(loss, step) for step, loss in enumerate(losses, start=1)]


def stops_at(stopper: EarlyStopping, losses: list[float | None]) -> int | None:
    return next((i for i, decision in enumerate(feed(stopper, losses), start=1) if decision.stop), None)


def test_stops_after_patience_evaluations_without_improvement():
    assert stops_at(EarlyStopping(2, 0.01), [3.0, 2.0, 2.5, 2.4, 2.3]) == 4


def test_an_improvement_resets_the_count():
    assert stops_at(EarlyStopping(2, 0.01), [3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.95]) == 7


def test_patience_zero_never_stops():
    assert stops_at(EarlyStopping(0, 0.01), [1.0] + [2.0] * 100) is None


def test_slow_steady_gains_add_up_to_improvements():
    # 0.009 a time at a threshold of 0.01: every second evaluation is an improvement over the anchor.
    stopper = EarlyStopping(2, 0.01)
    decisions = feed(stopper, [3.0 - 0.009 * i for i in range(20)])
    assert not any(decision.stop for decision in decisions)
    assert [decision.improved for decision in decisions[:5]] == [True, False, True, False, True]
    assert all(decision.is_best for decision in decisions)


def test_the_best_is_the_lowest_value_whatever_the_threshold():
    stopper = EarlyStopping(5, 0.5)
    decisions = feed(stopper, [3.0, 2.9, 2.8, 2.95])
    assert [d.is_best for d in decisions] == [True, True, True, False]
    assert [d.improved for d in decisions] == [True, False, False, False]
    assert (stopper.best, stopper.best_step, stopper.anchor) == (2.8, 3, 3.0)


def test_exactly_the_threshold_is_no_improvement():
    assert [d.improved for d in feed(EarlyStopping(9, 0.5), [3.0, 2.5, 2.25])] == [True, False, True]


@pytest.mark.parametrize("nothing", [math.nan, math.inf, None])
def test_what_is_no_number_is_never_best_and_never_an_improvement(nothing):
    stopper = EarlyStopping(2, 0.01)
    assert stopper.update(nothing, 1) == Decision(is_best=False, improved=False, stop=False)
    assert stopper.update(2.0, 2) == Decision(is_best=True, improved=True, stop=False)
    assert stopper.update(nothing, 3).improved is False
    assert stopper.update(nothing, 4).stop is True
    assert (stopper.best, stopper.best_step) == (2.0, 2)


def test_state_survives_json_and_leaves_the_settings_alone():
    before = EarlyStopping(2, 0.01)
    feed(before, [3.0, 2.0, 2.5])
    after = EarlyStopping(4, 0.2, 1.5)
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    assert (after.patience, after.threshold, after.significance) == (4, 0.2, 1.5)
    assert after.anchor_step == 2
    assert (after.anchor, after.best, after.best_step, after.evals_without_improvement) == (2.0, 2.0, 2, 1)


def test_an_untouched_state_survives_json_too():
    after = EarlyStopping(1)
    after.load_state_dict(json.loads(json.dumps(EarlyStopping(1).state_dict(), allow_nan=False)))
    assert after.update(5.0, 1) == Decision(is_best=True, improved=True, stop=False)


def test_a_raised_patience_lets_a_stopped_run_go_on():
    stopped = EarlyStopping(1, 0.01)
    feed(stopped, [2.0, 2.1])
    assert stopped.exhausted
    patient = EarlyStopping(3, 0.01)
    patient.load_state_dict(stopped.state_dict())
    assert not patient.exhausted


def test_significance_asks_for_more_than_so_many_errors():
    stopper = EarlyStopping(9, threshold=0.01, significance=2.0)
    stopper.update(3.0, 1)
    assert not stopper.update(2.8, 2, error=0.1).improved, "exactly two errors are not more than two"
    assert (stopper.anchor, stopper.anchor_step, stopper.best, stopper.best_step) == (3.0, 1, 2.8, 2)
    assert stopper.update(2.7, 3, error=0.1).improved
    assert stopper.anchor_step == 3
    assert not stopper.update(2.695, 4, error=0.001).improved, "the threshold holds as well"
    assert stopper.update(2.68, 5, error=0.001).improved


@pytest.mark.parametrize("error", [None, math.nan, math.inf])
def test_where_the_error_is_not_known_the_threshold_decides(error):
    stopper = EarlyStopping(9, threshold=0.1, significance=2.0)
    stopper.update(3.0, 1)
    assert not stopper.update(2.95, 2, error=error).improved
    assert stopper.update(2.85, 3, error=error).improved


def test_negative_settings_are_refused():
    with pytest.raises(ValueError, match="negative"):
        EarlyStopping(-1)
    with pytest.raises(ValueError, match="negative"):
        EarlyStopping(1, math.nan)
    with pytest.raises(ValueError, match="negative"):
        EarlyStopping(1, significance=-1.0)
