"""Evaluations kept example by example, and the errors of differences that they give."""

from __future__ import annotations

import math

import pytest

from tinker_utils.run.evaluations import Evaluation, PastEvaluations


def evaluation(*totals: float, tokens: tuple[int, ...] = (2, 3)) -> Evaluation:
    return Evaluation(sum(totals), totals, tokens)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "evaluations"


def test_what_is_kept_survives_to_the_last_bit(directory):
    first, second = evaluation(1 / 3, 8.1), evaluation(0.3, 7.9)
    PastEvaluations(directory).keep(4, first)
    now, later = PastEvaluations(directory), PastEvaluations(directory)
    now.keep(4, first)
    assert later.difference(4, second) == now.difference(4, second)
    # d = (0.3 - 1/3 + 7.9 - 8.1) / 5 = -7/150; residuals ±(1/3 - 0.3 - 14/150).
    assert later.difference(4, second).stderr == pytest.approx(math.sqrt(2 * 2 * (0.06) ** 2 / 25))


def test_without_single_losses_on_both_sides_there_is_no_error(directory):
    past = PastEvaluations(directory)
    past.keep(4, evaluation(1.0, 8.0))
    unknown = Evaluation(9.0, None, (2, 3))
    assert past.difference(4, unknown) is None
    assert past.difference(None, evaluation(1.0, 8.0)) is None
    assert past.difference(5, evaluation(1.0, 8.0)) is None
    assert past.difference(4, evaluation(1.0, tokens=(2,))) is None
    past.keep(4, unknown)
    for reader in (past, PastEvaluations(directory)):
        assert reader.difference(4, evaluation(1.0, 8.0)) is None
    assert (unknown.pooled.loss, unknown.pooled.stderr) == (9 / 5, None)


def test_a_torn_file_is_as_good_as_none(directory):
    PastEvaluations(directory).keep(4, evaluation(1.0, 8.0))
    (file,) = directory.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert PastEvaluations(directory).difference(4, evaluation(1.0, 8.0)) is None


def test_only_what_is_needed_stays_on_the_disk(directory):
    past = PastEvaluations(directory)
    past.keep_only({2})
    for step in (2, 4, 6):
        past.keep(step, evaluation(1.0, 8.0))
    past.keep_only({4, None})
    assert [file.stat().st_size for file in directory.iterdir()] == [2 * 8]
    assert past.difference(4, evaluation(1.0, 8.0)).stderr == 0.0
    assert past.difference(2, evaluation(1.0, 8.0)) is None
