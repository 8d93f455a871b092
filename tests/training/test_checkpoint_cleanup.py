"""Which checkpoints a run needs, and which those that were moved aside keep."""

from __future__ import annotations

from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Checkpoint, Progress, ResumePoint, Roles, RunState, StoppingState, encode_state
from tinker_utils.training.checkpoint_cleanup import Kept, needed, set_aside

A, B = "tinker://a/weights/", "tinker://b/weights/"


def point(latest, best):
    return ResumePoint(latest.path, Progress(step=latest.step), StoppingState(), Roles(best, latest))


def test_a_run_needs_what_the_points_name_under_the_names_of_all_its_attempts():
    periodic = Checkpoint(4, A + "4", periodic=True)
    points = [point(periodic, Checkpoint(2, A + "2")), point(Checkpoint(8, B + "8"), Checkpoint(6, B + "6"))]
    kept = needed(RunState(models=["killed"], resume_points=points, periodic_checkpoints=[periodic]))
    assert kept.models == ("killed", "a", "b")
    assert kept.lasting == {B + "6", B + "8"}
    assert kept.passing == {A + "4"}, "the best of then is not needed: a better one came"


def test_a_run_that_was_moved_aside_keeps_its_best_and_its_latest(tmp_path):
    run = RunDirectory(tmp_path)
    best = Checkpoint(4, A + "4")
    points = [point(latest, best) for latest in (best, Checkpoint(8, B + "8"), Checkpoint(6, B + "6"))]
    for name, content in {
        "1": encode_state(RunState(models=["a", "b"], best_checkpoint=A + "4", resume_points=points)),
        "2": b"damaged",
        "3": encode_state(RunState()),
    }.items():
        (tmp_path / "previous" / name).mkdir(parents=True)
        (tmp_path / "previous" / name / "run.json").write_bytes(content)
    assert set_aside(run) == [Kept(("a", "b"), frozenset({A + "4", B + "8"})), Kept((), frozenset())]
