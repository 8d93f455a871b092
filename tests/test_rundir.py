from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.rundir import RunDirectory, write_atomically


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create()
    return run


def test_state_goes_round_and_leaves_no_temporary_file(run):
    assert run.read_state() is None
    run.write_state({"status": "running", "step": 3})
    run.write_state({"status": "stopped", "step": 4})
    assert run.read_state() == {"status": "stopped", "step": 4}
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_state_that_cannot_be_written_leaves_the_old_one(run):
    run.write_state({"step": 1})
    with pytest.raises(ValueError, match="JSON"):
        run.write_state({"step": float("nan")})
    assert run.read_state() == {"step": 1}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_state_is_told_with_its_path(run, content):
    run.state.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"run\.json"):
        run.read_state()


def test_the_directory_is_private(run):
    assert run.path.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be made a run directory"):
        RunDirectory(tmp_path / "file").create()


def test_a_second_process_is_refused_and_told_of_the_first(run):
    code = (
        "import sys; from tinker_utils.rundir import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=f"process {other.pid} on "), run.lock():
            pass
        other.kill()
    with run.lock():  # the system let go of it when the process was killed
        pass


def test_control_files(run):
    run.request_stop()
    run.request_pause()
    assert (run.stop_requested(), run.pause_requested()) == (True, True)
    run.request_resume()
    assert (run.stop_requested(), run.pause_requested()) == (True, False)
    run.clear_requests()
    assert not run.stop_requested()


def test_starting_anew_loses_nothing(run):
    assert run.archive() is None
    for content in ("first", "second"):
        run.metrics.write_text(content)
        run.archive()
    assert not run.metrics.exists()
    previous = run.path / "previous"
    assert [(previous / n / "metrics.jsonl").read_text() for n in ("1", "2")] == ["first", "second"]


def test_metrics_are_cut_back_to_a_resume_point(run):
    run.metrics.write_text("one\ntwo\nthree\n")
    run.truncate_metrics(8)
    assert run.metrics.read_text() == "one\ntwo\n"


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.json"
    write_atomically(target, json.dumps(1))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert target.read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1
