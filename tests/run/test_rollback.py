"""Files cut back to a checkpoint: what goes, what stays, and what a kill left unfinished."""

from __future__ import annotations

import json

import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run import rollback
from tinker_utils.run.rollback import repair_last_line, roll_back_metrics, roll_back_samples
from tinker_utils.run.spending import Spending


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def line(kind: str, step: int, **fields) -> str:
    return json.dumps({"type": kind, "step": step, **fields}) + "\n"


BEFORE = line("notice", 0) + line("train", 2) + line("checkpoint", 2, path="tinker://a/weights/step-2")
AFTER = line("train", 4) + line("checkpoint", 4, path="tinker://a/weights/step-4") + line("end", 4)


def test_what_came_after_the_checkpoint_goes(metrics):
    metrics.write_text(BEFORE + AFTER)
    assert roll_back_metrics(metrics, "tinker://a/weights/step-2", 2)
    assert metrics.read_text() == BEFORE


def test_without_a_checkpoint_all_of_the_run_goes(metrics):
    metrics.write_text(BEFORE + AFTER)
    assert roll_back_metrics(metrics, None, 0)
    assert metrics.read_text() == ""
    metrics.unlink()
    assert roll_back_metrics(metrics, None, 0)
    assert not metrics.exists()


def test_foreign_lines_and_earlier_resumes_stay_wherever_they_stand(metrics):
    foreign = "a note by hand\n" + '{"neither": "ours"}\n' + "[1]\n\n" + "\xff\n"
    resume = line("resume", 2, path="tinker://a/weights/step-2")
    metrics.write_text(foreign + BEFORE + AFTER + resume + line("train", 3) + foreign, encoding="latin-1")
    assert roll_back_metrics(metrics, "tinker://a/weights/step-2", 2)
    assert metrics.read_text(encoding="latin-1") == foreign + BEFORE + resume + foreign


def test_a_history_that_was_lost_is_said_and_the_rest_kept(metrics):
    metrics.write_text(line("train", 2) + line("end", 2) + line("train", 4))
    assert not roll_back_metrics(metrics, "tinker://a/weights/step-3", 3)
    assert metrics.read_text() == line("train", 2)
    metrics.unlink()
    assert not roll_back_metrics(metrics, "tinker://a/weights/step-3", 3)


@pytest.mark.parametrize(
    ("left", "mended"),
    [
        (BEFORE + '{"type": "train", "st', BEFORE),
        ('{"type', ""),
        (BEFORE, BEFORE),
        ("", ""),
        (line("train", 1) + line("train", 2).strip(), line("train", 1) + line("train", 2)),
    ],
)
def test_a_line_that_was_not_finished_is_cut_off(metrics, left, mended):
    metrics.write_text(left)
    repair_last_line(metrics)
    assert metrics.read_text() == mended


def test_a_file_that_no_run_wrote_is_refused(metrics, monkeypatch):
    monkeypatch.setattr(rollback, "_MAX_FILE", 10)
    metrics.write_bytes(bytes(11))
    for read in (
        repair_last_line,
        Spending,
        lambda file: roll_back_metrics(file, None, 0),
        lambda file: roll_back_samples(file, 0),
    ):
        with pytest.raises(RunDirectoryError, match="metrics.jsonl: cannot be read .has more than .* move it"):
            read(metrics)


def test_samples_of_later_steps_go_whatever_characters_they_hold(tmp_path):
    samples = tmp_path / "samples.jsonl"
    # U+2028 and U+0085 end a line for str.splitlines, but not in JSON lines.
    early = json.dumps({"step": 2, "completion": "one\u2028two\x85three"}, ensure_ascii=False) + "\n"
    late = json.dumps({"step": 4, "completion": ""}) + "\n"
    samples.write_text(early + "not ours\n" + late + '{"step": 2, "comp', encoding="utf-8")
    roll_back_samples(samples, 3)
    assert samples.read_text(encoding="utf-8") == early + "not ours\n"
    roll_back_samples(tmp_path / "missing", 3)
    assert not (tmp_path / "missing").exists()
