from __future__ import annotations

from tinker_utils.run.checkpoints import Checkpoint, Checkpoints


def test_superseded_ones_are_named_once_they_serve_nothing():
    kept = Checkpoints()
    first, second, third, fourth = (Checkpoint(step, f"tinker://m/weights/{step}") for step in (1, 2, 3, 4))
    assert kept.add(first, is_best=True) == []
    assert kept.add(second, is_best=False) == []
    assert kept.add(third, is_best=False) == [second]
    assert kept.add(fourth, is_best=True) == [first, third]
    assert kept.kept == [fourth]


def test_periodic_ones_stay():
    kept = Checkpoints()
    periodic = Checkpoint(1, "a", periodic=True)
    kept.add(periodic, is_best=True)
    assert kept.add(Checkpoint(2, "b"), is_best=True) == [periodic], "released: from now on it may expire"
    assert kept.kept == [periodic, Checkpoint(2, "b")]


def test_a_run_ends_with_its_best_or_else_its_latest():
    kept = Checkpoints()
    assert kept.result is None
    kept.add(Checkpoint(1, "a"), is_best=False)
    assert kept.result == Checkpoint(1, "a")
    kept.add(Checkpoint(2, "b"), is_best=True)
    kept.add(Checkpoint(3, "c"), is_best=False)
    assert kept.result == Checkpoint(2, "b")


def test_a_copy_goes_its_own_way_and_shares_what_never_changes():
    """A run keeps one for each point that it can be resumed from."""
    kept = Checkpoints()
    kept.add(Checkpoint(1, "a", periodic=True), is_best=True)
    copy = kept.copy()
    kept.add(Checkpoint(2, "b", periodic=True), is_best=False)
    assert (copy.latest, copy.periodic) == (Checkpoint(1, "a", periodic=True), [Checkpoint(1, "a", periodic=True)])
    assert copy.periodic[0] is kept.periodic[0]
