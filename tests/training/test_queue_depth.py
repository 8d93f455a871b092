"""The depth of the queue, against a service and a link of which everything is known."""

from __future__ import annotations

import math
from collections import deque

import pytest

from tinker_utils.training.queue_depth import QueueDepth


def run(depth, steps, *, request_s, answer_s, work_s, cycle_s=0.0):
    """Seconds that `steps` take when as many are kept in flight as `depth` says.

    A step is two requests, one after the other; the service works on one step at a time, from a tick on if it has a
    clock; the answer takes its own time back.
    """
    now = link_free = service_free = 0.0
    on_their_way: deque[tuple[float, float]] = deque()
    submitted = answered = 0
    while answered < steps:
        while submitted < steps and len(on_their_way) < depth.depth:
            link_free = max(now, link_free) + 2 * request_s
            begins = max(link_free, service_free)
            begins = math.ceil(begins / cycle_s - 1e-9) * cycle_s if cycle_s else begins
            service_free = begins + (cycle_s or work_s)
            on_their_way.append((now, service_free + answer_s))
            submitted += 1
        sent, arrives = on_their_way.popleft()
        now = max(now, arrives)
        depth.answered(sent, now)
        answered += 1
    return now


def test_two_steps_are_enough_where_the_link_takes_no_time():
    depth = QueueDepth()
    assert run(depth, 100, request_s=1e-4, answer_s=1e-4, work_s=0.1) == pytest.approx(10.0, rel=0.01)
    assert depth.depth <= 3


def test_cycles_of_ten_seconds_at_a_round_trip_of_a_tenth_of_one_need_three():
    depth = QueueDepth()
    # The first cycle begins at the first tick that has a step.
    assert run(depth, 100, request_s=0.1, answer_s=0.05, work_s=0, cycle_s=10) == pytest.approx(1010, abs=1)
    assert depth.depth == 3


def test_a_long_way_back_makes_it_deeper_until_the_service_never_waits():
    depth = QueueDepth()
    # A step's work takes 0.1 s, and its answer is known 0.35 s after it began: four must be in flight.
    took = run(depth, 400, request_s=0.001, answer_s=0.25, work_s=0.1)
    assert depth.depth in (4, 5)
    assert took == pytest.approx(40, rel=0.05)


def test_it_is_bounded_and_fixed_where_the_bound_is_two():
    bounded, fixed = QueueDepth(6), QueueDepth(2)
    for depth in (bounded, fixed):
        run(depth, 400, request_s=0.001, answer_s=3.0, work_s=0.1)
    assert (bounded.depth, fixed.depth) == (6, 2)


def test_a_slower_link_is_noticed():
    depth = QueueDepth()
    run(depth, 100, request_s=0.001, answer_s=0.001, work_s=0.1)
    before = depth.depth
    run(depth, 700, request_s=0.001, answer_s=0.35, work_s=0.1)
    assert before <= 3 < depth.depth


def test_what_comes_between_steps_is_not_taken_for_their_pace():
    depth, disturbed = QueueDepth(), QueueDepth()
    moments = [(0.1 * n, 0.1 * n + 0.45) for n in range(20)]
    for submitted, answered in moments:
        depth.answered(submitted, answered)
    for submitted, answered in moments[:10]:
        disturbed.answered(submitted, answered)
    disturbed.disturbed()  # an evaluation of an hour
    for submitted, answered in moments[10:]:
        disturbed.answered(submitted + 3600, answered + 3600)
    # Answers come each 0.1 s, 0.45 s after their submission.
    assert depth.depth == disturbed.depth == 6
