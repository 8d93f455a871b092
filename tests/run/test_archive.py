"""An earlier run is moved aside whole, and nothing that no run wrote is touched."""

from __future__ import annotations

import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.archive import archive
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import RunState


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create()
    return run


def test_starting_anew_loses_nothing(run):
    assert archive(run) is None
    for content in ("first", "second"):
        run.write_state(RunState())
        run.metrics.write_text(content)
        archive(run)
    assert not run.metrics.exists()
    previous = run.path / "previous"
    assert [(previous / n / "metrics.jsonl").read_text() for n in ("1", "2")] == ["first", "second"]


def test_a_move_aside_that_was_cut_off_is_brought_to_its_end(run):
    run.write_state(RunState(status="completed"))
    run.metrics.write_text("first")
    moving = run.path / "previous" / ".tinker_utils-moving"
    moving.mkdir(parents=True)
    run.state.rename(moving / "run.json")  # killed here
    assert archive(run) == run.path / "previous" / "1"
    assert sorted(file.name for file in (run.path / "previous" / "1").iterdir()) == ["metrics.jsonl", "run.json"]
    assert archive(run) is None


@pytest.mark.parametrize("names", [["config.yaml", "adapter"], ["metrics.jsonl"], ["samples.jsonl"], ["evaluations"]])
def test_what_no_run_wrote_is_not_moved_and_the_run_does_not_begin(run, names):
    for name in names:
        path = run.path / name
        path.write_text("mine") if path.suffix else path.mkdir()
    with pytest.raises(
        RunDirectoryError, match=f"holds {', '.join(names)}, and no run.json says that a run wrote that"
    ):
        archive(run)
    assert sorted(path.name for path in run.path.iterdir()) == sorted(names)


def test_beside_other_files_a_run_begins_and_moves_its_own_only(run):
    (run.path / "notes.txt").write_text("mine")
    assert archive(run) is None
    run.write_config("run: {}\n")
    run.write_state(RunState())
    archive(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "previous"]


def test_a_run_whose_state_was_lost_is_moved_and_what_it_spent_stays(run):
    run.write_config("run: {}\n")
    run.metrics.write_text("{}\n")
    run.spending.write_text('{"step": 1, "tokens": 5, "eval_tokens": 0}\n')
    previous = archive(run)
    assert sorted(path.name for path in previous.iterdir()) == ["config.yaml", "metrics.jsonl"]
    assert run.spending.exists()
