"""Which checkpoints a run needs, and which those that were moved aside keep."""

from __future__ import annotations

from tinker_utils.run.checkpoints import Checkpoint, Checkpoints
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Progress, Roles, RunState, SavedPoint, StoppingState, encode_state
from tinker_utils.training.checkpoint_cleanup import Kept, needed, set_aside

A, B = "tinker://a/weights/", "tinker://b/weights/"


def test_a_run_needs_what_the_points_name_under_the_names_of_all_its_attempts():
    periodic = Checkpoint(4, A + "4", periodic=True)
    points = [
        Checkpoints(best=Checkpoint(2, A + "2"), latest=periodic, periodic=[periodic]),
        Checkpoints(best=Checkpoint(6, B + "6"), latest=Checkpoint(8, B + "8"), periodic=[periodic]),
    ]
    kept = needed(["killed"], points)
    assert kept.models == ("killed", "a", "b")
    assert kept.lasting == {B + "6", B + "8"}
    assert kept.passing == {A + "4"}, "the best of then is not needed: a better one came"


def test_a_run_that_was_moved_aside_keeps_its_best_and_its_latest(tmp_path):
    run = RunDirectory(tmp_path)
    points = [
        SavedPoint(path, Progress(step=step), StoppingState(), Roles())
        for path, step in ((A + "4", 4), (B + "8", 8), (B + "6", 6))
    ]
    for name, content in {
        "1": encode_state(RunState(models=["a", "b"], best_checkpoint=A + "4", resume_points=points)),
        "2": b"damaged",
        "3": encode_state(RunState()),
    }.items():
        (tmp_path / "previous" / name).mkdir(parents=True)
        (tmp_path / "previous" / name / "run.json").write_bytes(content)
    assert set_aside(run) == [Kept(("a", "b"), frozenset({A + "4", B + "8"})), Kept((), frozenset())]
