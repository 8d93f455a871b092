"""What a run says of itself when the disk refuses it."""

from __future__ import annotations

import errno

import pytest

from tinker_utils import rewinding
from tinker_utils.errors import RunDirectoryError
from tinker_utils.journal import Journal
from tinker_utils.rundir import RunDirectory


def test_a_disk_that_is_full_while_a_run_goes_back_leaves_one_sentence_and_the_reason(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with run.lock(), Journal(run, {"status": "running"}) as journal:
        journal.record("train", 2)
        with monkeypatch.context() as patch:
            patch.setattr(rewinding, "write_atomically", full)
            with pytest.raises(RunDirectoryError, match="No space left on device"):
                journal.rewind(None, 0)
        journal.abandon("failed", "the disk is full")
    assert (run.read_state() or {})["status"] == "failed"
