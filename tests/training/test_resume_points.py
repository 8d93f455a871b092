"""Where a run goes on and whether it has ended, from run.json alone."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from support.states import state_of

from tinker_utils.config.loading import dump_config
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ResumeError
from tinker_utils.training.resuming import (
    changes_to_take_up,
    has_ended,
    resume_points,
    stopper_at,
    stretched_schedule,
    with_fresh_patience,
    without_lost_best,
)


def saved(step, best=None, without_improvement=0):
    """Return a point of run.json as JSON has it."""
    here = {"step": step, "path": f"tinker://m/weights/{step}", "periodic": step % 4 == 0}
    best_here = {"step": best, "path": f"tinker://m/weights/{best}", "periodic": best % 4 == 0} if best else None
    return {
        "path": here["path"],
        "progress": {"step": step},
        "early_stopping": {"best": 1.5, "best_step": best, "evals_without_improvement": without_improvement},
        "checkpoints": {"best": best_here, "latest": here},
    }


def plan_with(plan, **changes):
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, **changes))


def test_the_latest_point_comes_first_and_the_start_last():
    points = resume_points(state_of(resume_points=[saved(2), saved(6), saved(4)]))
    assert [point.progress.step for point in points] == [6, 4, 2, 0]
    assert (points[-1].path, points[-1].checkpoints.latest) == ("", None)
    assert resume_points(None) == points[-1:]


def test_early_stopping_of_a_run_that_knows_of_no_anchor_step_goes_on():
    point = resume_points(state_of(resume_points=[saved(6, best=4, without_improvement=1)]))[0]
    config = TrainingConfig(service="local", model="tiny", early_stopping_patience=2, early_stopping_significance=1.0)
    stopper = stopper_at(point, config)
    assert stopper.anchor_step is None
    assert (stopper.best, stopper.best_step, stopper.evals_without_improvement) == (1.5, 4, 1)


def test_a_best_checkpoint_that_later_ones_superseded_is_not_waited_for():
    point, _ = resume_points(state_of(resume_points=[saved(6, best=2)]))
    state = state_of(resume_points=[saved(6, best=2), saved(8, best=5)])
    assert without_lost_best(point, state).checkpoints.best is None
    assert without_lost_best(point, state).checkpoints.latest == point.checkpoints.latest
    assert without_lost_best(point, state_of(resume_points=[saved(6, best=2), saved(8, best=2)])) is point
    periodic = state_of(
        resume_points=[saved(6, best=4), saved(8, best=5)], periodic_checkpoints=[saved(4)["checkpoints"]["latest"]]
    )
    point = resume_points(periodic)[1]
    assert without_lost_best(point, periodic) is point


@pytest.mark.parametrize(
    ("status", "step", "without_improvement", "epochs", "ended"),
    [
        ("completed", 12, 0, 2, True),
        ("completed", 12, 0, 3, False),
        ("stopped", 12, 0, 2, False),
        ("early_stopped", 8, 3, 2, True),
        ("early_stopped", 8, 3, 3, False),
        ("early_stopped", 8, 2, 2, False),
    ],
)
def test_a_run_has_ended_unless_more_is_asked_for(small_plan, status, step, without_improvement, epochs, ended):
    state = state_of(status=status, plan={"epochs": 2}, resume_points=[saved(step, 4, without_improvement)])
    config = dataclasses.replace(small_plan.config, epochs=epochs, early_stopping_patience=3)
    batches = dataclasses.replace(small_plan.batches, epochs=epochs)
    plan = dataclasses.replace(small_plan, config=config, batches=batches)
    assert has_ended(state, resume_points(state)[0], plan) is ended


def test_patience_counts_anew_only_where_it_had_run_out_and_more_epochs_are_asked_for(small_plan):
    state = state_of(plan={"epochs": 2}, resume_points=[saved(8, 4, 3)])
    point = resume_points(state)[0]
    more = plan_with(small_plan, epochs=3, early_stopping_patience=3)
    assert with_fresh_patience(point, state, more).early_stopping.evals_without_improvement == 0
    assert with_fresh_patience(point, state, more).early_stopping.best_step == 4
    for unchanged in (plan_with(small_plan, early_stopping_patience=3), plan_with(more, early_stopping_patience=4)):
        assert with_fresh_patience(point, state, unchanged) == point


def test_changes_are_taken_up_or_refused(small_plan, run):
    run.create()
    run.config.write_text(dump_config(small_plan.config), encoding="utf-8")
    state = state_of(data_digest=small_plan.data_digest, rendering=small_plan.renderer.rendering)
    assert changes_to_take_up(run, state, small_plan) == []
    (change,) = changes_to_take_up(run, state, plan_with(small_plan, epochs=9))
    assert str(change) == "training.epochs: 2 → 9"
    with pytest.raises(ResumeError, match=r"lora\.rank: 4 → 8; training\.seed: 0 → 1\. Undo the changes"):
        lora = dataclasses.replace(small_plan.config.lora, rank=8)
        changes_to_take_up(run, state, plan_with(small_plan, lora=lora, seed=1, epochs=9))
    other = msgspec.structs.replace(state, data_digest="0" * 64)
    with pytest.raises(ResumeError, match=f"SHA-256.: 000000000000 → {small_plan.data_digest[:12]}"):
        changes_to_take_up(run, other, small_plan)


def test_another_number_of_steps_is_said_where_it_moves_the_learning_rate(small_plan):
    state = state_of(plan={"total_steps": 20})
    constant = plan_with(small_plan, lr_schedule="constant", warmup_ratio=0.0)
    assert stretched_schedule(state, constant) == []
    for moved in (plan_with(constant, lr_schedule="linear"), plan_with(constant, warmup_ratio=0.1)):
        (sentence,) = stretched_schedule(state, moved)
        assert "planned for 20 steps and now has 12" in sentence
    assert stretched_schedule(None, plan_with(constant, lr_schedule="linear")) == []
