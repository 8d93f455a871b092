"""What a run says of itself when the disk refuses it."""

from __future__ import annotations

import errno

import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import rollback
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.state import RunState


def test_a_disk_that_is_full_while_a_run_goes_back_leaves_one_sentence_and_the_reason(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with run.lock(), RunLogger(run, RunState()) as logger:
        logger.record("train", 2)
        with monkeypatch.context() as patch:
            patch.setattr(rollback, "write_atomically", full)
            with pytest.raises(RunDirectoryError, match="No space left on device"):
                logger.roll_back(None, 0)
        logger.abandon("failed", "the disk is full")
    assert run.read_state().status == "failed"
