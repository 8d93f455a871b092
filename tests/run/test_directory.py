from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import lock
from tinker_utils.run.directory import RunDirectory, write_atomically
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.state import RunState, Spent


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.create()
    return run


def test_state_goes_round_and_leaves_no_temporary_file(run):
    assert run.read_state() is None
    run.write_state(RunState(models=["a"]))
    run.write_state(RunState(status="stopped", models=["a", "b"]))
    assert run.read_state() == RunState(status="stopped", models=["a", "b"])
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_state_that_cannot_be_written_leaves_the_old_one(run):
    run.write_state(RunState(models=["a"]))
    with pytest.raises(msgspec.ValidationError):
        run.write_state(RunState(spent=Spent(-1)))
    assert run.read_state() == RunState(models=["a"])


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_state_is_told_with_its_path(run, content):
    run.state.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"run\.json"):
        run.read_state()


def test_the_directory_is_private(run):
    assert run.path.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be created as a run directory"):
        RunDirectory(tmp_path / "file").create()


def test_a_second_process_is_refused_and_told_of_the_first(run):
    code = (
        "import sys; from tinker_utils.run import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=f"process {other.pid} on "), run.lock():
            pass
        assert not run.is_free()
        other.kill()
        other.wait()
    assert run.is_free()
    with run.lock():  # the system let go of it when the process was killed
        pass


def test_a_directory_that_was_never_locked_is_free_and_looking_leaves_nothing_behind(run):
    assert run.is_free()
    assert not list(run.path.iterdir())


def test_a_lock_of_another_machine_leaves_it_open(run):
    with run.lock():
        pass
    assert run.is_free()
    (run.path / ".lock").write_text("process 1 on another-machine")
    assert not run.is_free()


def test_somebody_who_looks_at_the_lock_does_not_keep_a_trainer_out(run, monkeypatch):
    with run.lock():
        pass
    looking = os.open(run.path / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))  # has looked by the next try
    with run.lock():
        assert not run.is_free()
    os.close(looking)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_sentence(run, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError) as refused, run.lock():
        pass
    assert str(refused.value).startswith(f"{run.path}: its file system has no locks ({os.strerror(number)})")
    assert "choose an output directory on another disk" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not run.is_free()  # nobody can know


def test_a_lock_that_the_disk_refuses_is_one_sentence(run, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunDirectoryError, match="one: cannot be written"), run.lock():
        pass


def test_control_files(run):
    run.request_stop()
    run.request_pause()
    assert (run.stop_requested(), run.pause_requested()) == (True, True)
    run.request_resume()
    assert (run.stop_requested(), run.pause_requested()) == (True, False)
    run.clear_requests()
    assert not run.stop_requested()


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.json"
    write_atomically(target, json.dumps(1))
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert target.read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_write_left_is_cleared_by_the_next_holder(run):
    mine = [".adapter.x1", ".notes.2026.11", ".python-3.11.7", ".run.json.123.456"]
    for name in (*mine, ".tinker_utils-x1_y2z3.tmp"):
        (run.path / name).write_text("{")
    with run.lock():
        assert sorted(file.name for file in run.path.iterdir()) == sorted([*mine, ".lock"])


def test_a_helper_that_was_forked_does_not_hold_the_lock(run):
    running, says_so = os.pipe()
    with run.lock():
        helper = os.fork()
        if not helper:
            os.write(says_so, b"1")
            signal.pause()
    try:
        assert os.read(running, 1)
        assert run.is_free()
        with run.lock():
            pass
    finally:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)


LAID = (
    ".lock", "train.log", "metrics.jsonl", "samples.jsonl", "spending.jsonl", "STOP", "adapter", "evaluations",
    "checkpoints", "previous",
)  # fmt: skip


@pytest.mark.parametrize("name", LAID)
@pytest.mark.parametrize("laid", [Path.symlink_to, lambda path, _: os.mkfifo(path)])
def test_no_link_and_no_pipe_is_written_to(run, tmp_path, name, laid):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    laid(run.path / name, mine)
    with pytest.raises(RunDirectoryError, match=rf"{name} is (a link|neither a file)"), run.lock():
        pass
    if name == "STOP":
        with pytest.raises(RunDirectoryError, match="STOP is"):
            run.request_stop()
    assert mine.read_text() == "precious"


def test_a_file_that_was_not_made_for_a_lock_is_left_alone(run):
    (run.path / ".lock").write_text("precious")
    with pytest.raises(RunDirectoryError, match="not made for a lock"), run.lock():
        pass
    assert (run.path / ".lock").read_text() == "precious"


def test_a_directory_that_is_open_to_all_is_read_and_not_written_to(run):
    run.write_state(RunState(models=["a"]))
    run.path.chmod(0o777)
    with pytest.raises(RunDirectoryError, match="can be written by every user"), run.lock():
        pass
    assert run.read_state() == RunState(models=["a"])
    run.path.chmod(0o1777)
    with run.lock():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_read_and_not_written_to(run):
    run.write_state(RunState(models=["a"]))
    os.chown(run.path, 12345, 12345)
    with pytest.raises(RunDirectoryError, match="belongs to another user"), run.lock():
        pass
    assert run.read_state() == RunState(models=["a"])


def test_a_file_system_that_keeps_no_owners_is_told_of_once(run, monkeypatch):
    run.path.chmod(0o777)
    fstat = os.fstat
    loose = lambda descriptor: os.stat_result((0o100777, *fstat(descriptor)[1:]))  # noqa: E731
    monkeypatch.setattr("tinker_utils.basics.files.os.fstat", loose)
    (told,) = run.check_own()
    assert told == f"{run.path}: its file system keeps no owners or modes, so whoever can reach it can change the run."


def test_a_link_on_the_way_to_the_directory_is_fine(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path.parent)
    with RunDirectory(tmp_path / "link" / "one").lock():
        assert not run.is_free()


def test_what_a_run_writes_is_private_whatever_the_directory_is(run):
    run.path.chmod(0o755)
    run.write_config("run: {}\n")
    run.request_stop()
    with run.lock(), RunLogger(run, RunState()) as logger:
        logger.activity("starting", "now")
        logger.samples(1, [{}])
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in run.path.iterdir()} == dict.fromkeys(
        ["config.yaml", "STOP", ".lock", "metrics.jsonl", "train.log", "run.json", "samples.jsonl"], "0o600"
    )


def test_a_directory_that_was_moved_away_is_not_written_to_at_its_old_place(run):
    elsewhere = run.path.with_name("elsewhere")
    with run.lock():
        run.write_state(RunState())
        run.path.rename(elsewhere)
        with pytest.raises(RunDirectoryError, match="moved or removed during the run"):
            run.write_state(RunState())
        run.create()
        with RunDirectory(run.path).lock(), pytest.raises(RunDirectoryError, match="moved or removed"):
            run.write_state(RunState())
    assert not run.state.exists()


def test_a_disk_that_is_full_is_one_sentence(run):
    big = RunDirectory("/dev/full")
    with pytest.raises(RunDirectoryError, match="cannot be") as refused, big.lock():
        pass
    assert "\n" not in str(refused.value)


def test_a_start_that_fails_beside_another_does_not_make_it_fail(run, monkeypatch):
    """It removes lock and directory as the other has just opened the lock, or is about to."""
    take, calls = lock.take, []

    def taken(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            (run.path / ".lock").unlink()
            run.path.rmdir()
        return take(descriptor)

    monkeypatch.setattr(lock, "take", taken)
    with run.lock():
        assert (len(calls), run.is_free()) == (2, False)
        run.check_held()


def test_a_directory_that_may_not_be_written_to_is_no_disk_to_repair(run, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(lock, "open_lock", refuse)
    with pytest.raises(RunDirectoryError) as refused, run.lock():
        pass
    assert str(refused.value) == f"{run.path}: cannot be written (Permission denied); choose another output directory."
