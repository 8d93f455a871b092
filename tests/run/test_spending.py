"""What was sent is counted, also by whoever goes on after a kill."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.spending import Spending
from tinker_utils.run.state import Spent


def counted(file, before=None):
    with closing(Spending(file, before)) as spending:
        return spending.tokens, spending.eval_tokens


def test_what_was_sent_outlasts_the_process_and_a_torn_line_does_not(tmp_path):
    file = tmp_path / "spending.jsonl"
    with closing(Spending(file)) as first:
        first.sent(1, 100)
        first.sent(2, 50, eval_tokens=7)
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"step": 3, "tok')  # killed here, before it was sent
    with closing(Spending(file)) as second:
        assert (second.tokens, second.eval_tokens) == (150, 7)
        second.sent(2, 50, eval_tokens=7)  # once more: it is billed once more
    assert counted(file) == (200, 14)


def test_what_an_older_version_had_spent_is_taken_over_once(tmp_path):
    for _ in range(2):
        assert counted(tmp_path / "spending.jsonl", Spent(30, 4)) == (30, 4)


def test_nothing_is_counted_that_could_not_be_written_down(tmp_path, monkeypatch):
    with closing(Spending(tmp_path / "spending.jsonl")) as spending:
        spending._file.close()
        monkeypatch.setattr(spending._file, "_file", open("/dev/full", "wb", buffering=0))  # noqa: PTH123, SIM115
        monkeypatch.setattr(spending._file, "_is_there", lambda: True)
        with pytest.raises(RunDirectoryError, match="cannot be written"):
            spending.sent(1, 100)
        assert spending.tokens == 0


@pytest.mark.parametrize(("before", "expected"), [((30, 4), (30, 9)), ((8, 20), (10, 20)), ((8, 2), (10, 9))])
def test_of_two_counts_the_larger_holds(tmp_path, before, expected):
    file = tmp_path / "spending.jsonl"
    file.write_text('{"step": 1, "tokens": 10, "eval_tokens": 9}\n')
    for _ in range(2):
        assert counted(file, Spent(*before)) == expected


@pytest.mark.parametrize("bills", [True, False])
def test_where_it_costs_money_a_line_is_on_the_disk_before_it_is_sent(tmp_path, monkeypatch, bills):
    synced = []
    with closing(Spending(tmp_path / "spending.jsonl", bills=bills)) as spending:
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        spending.sent(1, 100)
    assert synced == [(tmp_path / "spending.jsonl").stat().st_size] * bills
