from __future__ import annotations

from tinker_utils.training.waiting import AnswerTimes


def test_before_anything_is_known_four_seconds_are_overdue():
    assert AnswerTimes().overdue_after(10_000) == 4.0


def test_quick_answers_do_not_make_it_impatient():
    times = AnswerTimes()
    for _ in range(5):
        times.took(0.1, tokens=100)
    assert times.overdue_after(100) == 4.0


def test_a_service_that_works_in_cycles_of_ten_seconds_is_overdue_after_three_of_them():
    times = AnswerTimes()
    for _ in range(3):
        times.took(10.0, tokens=500)
    assert times.overdue_after(500) == 30.0
    assert times.overdue_after(0) == 30.0, "a save takes a cycle, too"
    assert times.overdue_after(5_000) == 300.0, "an evaluation of ten times the tokens"


def test_one_outage_does_not_make_the_next_one_unnoticed():
    times = AnswerTimes()
    for seconds in (1.0, 1.0, 3_600.0, 1.0, 1.0):
        times.took(seconds, tokens=100)
    assert times.overdue_after(100) == 4.0


def test_what_was_usual_long_ago_is_forgotten():
    times = AnswerTimes()
    for _ in range(100):
        times.took(0.1, tokens=100)
    for _ in range(9):
        times.took(5.0, tokens=100)
    assert times.overdue_after(100) == 15.0
