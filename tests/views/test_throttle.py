"""Work that nobody waits for keeps to its share."""

import pytest
from support.clock import Clock

from tinker_utils.views.throttle import Throttle


@pytest.fixture
def clock():
    return Clock()


def work(throttle, clock, seconds):
    with throttle.spending():
        clock.now += seconds


def test_work_of_a_tenth_of_a_second_waits_for_9_9_seconds(clock):
    throttle = Throttle(0.01, clock=clock, meter=clock)
    work(throttle, clock, 0.1)
    clock.now += 9.89
    assert not throttle.allows()
    clock.now += 0.02
    assert throttle.allows()


def test_over_a_day_the_share_is_kept_whatever_the_work_takes(clock):
    throttle = Throttle(0.01, wait=10, clock=clock, meter=clock)
    spent = 0.0
    while clock.now < 86_400:
        if throttle.allows():
            seconds = 0.05 + 0.2 * (clock.now % 7) / 7
            work(throttle, clock, seconds)
            spent += seconds
        clock.now += 0.5
    assert 0.008 < spent / clock.now <= 0.01


def test_credit_is_paid_back(clock):
    throttle = Throttle(0.01, clock=clock, meter=clock)
    for _ in range(3):
        work(throttle, clock, 0.1)
    assert not throttle.allows(credit=29.6)
    assert throttle.allows(credit=29.8)
    clock.now += 29.6  # 30 s from the beginning, less the work itself
    assert not throttle.allows()
    clock.now += 0.2
    assert throttle.allows()


def test_idle_time_is_not_saved_up(clock):
    throttle = Throttle(0.01, clock=clock, meter=clock)
    clock.now = 3600.0
    work(throttle, clock, 1.0)
    assert not throttle.allows()


def test_the_first_wait(clock):
    throttle = Throttle(0.01, wait=10, clock=clock, meter=clock)
    assert not throttle.allows()
    assert throttle.allows(credit=10)


def test_work_that_fails_counts_too(clock):
    throttle = Throttle(0.01, clock=clock, meter=clock)
    with pytest.raises(ZeroDivisionError), throttle.spending():
        clock.now += 1.0
        raise ZeroDivisionError
    assert not throttle.allows(credit=90)


def test_waiting_for_a_turn_costs_nothing(clock):
    meter = Clock()
    throttle = Throttle(0.01, clock=clock, meter=meter)
    with throttle.spending():
        clock.now += 5.0
        meter.now += 0.1
    assert not throttle.allows(credit=4.9)
    assert throttle.allows(credit=5.1)
