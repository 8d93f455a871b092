"""Which checkpoints a run needs, and which those that were moved aside keep."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from support.small_model import SmallService

from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Checkpoint, Progress, ResumePoint, Roles, RunState, StoppingState, encode_state
from tinker_utils.training.checkpoint_cleanup import CheckpointCleanup, Kept, needed, set_aside

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


class NoExpiry(SmallService):
    """A server that answers as SkyRL and TuFT do when a checkpoint is to expire."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def expire_checkpoint(self, path: str, ttl_seconds: int | None) -> Future[None]:
        refused: Future[None] = Future()
        error = RuntimeError(f"Error code: {self.status}")
        error.status_code = self.status
        refused.set_exception(error)
        return refused


@pytest.mark.parametrize(
    ("service", "shared", "asked", "failed"),
    [
        (SmallService(), False, [A + "1"], 0),
        (SmallService(), True, [A + "1 expires"], 0),
        (NoExpiry(405), True, [A + "1"], 0),
        (NoExpiry(500), True, [], 1),
    ],
    ids=["its own store", "elsewhere", "where nothing expires", "where it fails"],
)
async def test_what_is_superseded_expires_where_a_copy_may_need_it(service, shared, asked, failed):
    cleanup = CheckpointCleanup(service, None, shared)
    cleanup.saves_as("a")
    cleanup.release([Checkpoint(1, A + "1")])
    assert await cleanup.settle(10) == failed
    assert service.deleted == asked
    cleanup.remove(B + "1")
    assert (service.deleted == asked, cleanup.left) == ((True, 1) if shared else (False, 0)), "another attempt's"
