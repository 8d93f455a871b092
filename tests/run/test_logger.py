"""What a run says of itself when the disk refuses it."""

from __future__ import annotations

import errno
import json
import os

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


def test_the_last_record_is_on_the_disk_before_run_json_says_that_the_run_has_ended(run, monkeypatch):
    run.create()
    synced = []

    def fsync(descriptor):
        if os.path.samestat(os.fstat(descriptor), run.metrics.stat()):
            synced.append((run.read_state().status, run.metrics.read_bytes()))

    with RunLogger(run, RunState()) as logger:
        logger.publish()
        monkeypatch.setattr(os, "fsync", fsync)
        logger.end("completed", "all epochs are done", 1)
    assert synced == [("running", run.metrics.read_bytes())]
    assert run.read_state().status == "completed"


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log"])
def test_a_file_that_somebody_removes_is_made_anew_and_the_metrics_say_so(run, name):
    run.create()
    with RunLogger(run, RunState()) as logger:
        logger.record("train", 1)
        (run.path / name).unlink()
        logger.record("train", 2)
        logger.record("train", 3)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    told = [(line["type"], line["step"]) for line in lines]
    if name == "metrics.jsonl":
        assert told == [("train", 2), ("notice", 2), ("train", 3)]
        assert "was removed during the run" in lines[1]["message"]
    else:
        assert told == [("train", 1), ("train", 2), ("train", 3)]
        assert [line.split()[3] for line in run.log.read_text().splitlines()] == ["step=2", "step=3"]


def test_at_the_start_nothing_is_left_of_the_base_models_evaluation(run):
    """A run that is killed before its first checkpoint asks the base model again, and must not say it twice."""
    run.create()
    with RunLogger(run, RunState()) as logger:
        logger.record("val", 0, val_loss=1.0)
        logger.samples(0, [{"prompt": "Why?", "completion": "So."}])
        logger.samples(4, [{"prompt": "Why?", "completion": "Because."}])
        logger.roll_back("tinker://a/weights/2", 2)
        assert [json.loads(line)["step"] for line in run.samples.read_text().splitlines()] == [0]
        logger.roll_back(None, 0)
    assert (run.metrics.read_text(), run.samples.read_text()) == ("", "")
