"""A run through a service that misbehaves: the real SDK, the embedded server, and a relay between that injects faults.

What is learned, and what is written down of it, must be that of a quiet run.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
from faulty_service import Fault, FaultyService, about, dropped_after, dropped_before, hanging, late, paused, refused
from small_runs import adapter_bytes, history, records

from tinker_utils import waiting
from tinker_utils.errors import ServiceTimeoutError
from tinker_utils.preparation import prepare
from tinker_utils.run_status import RunFollower
from tinker_utils.training import fit

pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture
def faulty(local_service):
    with FaultyService(local_service.base_url) as service:
        yield service


def through(faulty, config, **changes):
    return dataclasses.replace(config, service=faulty.base_url, **changes)


def planned_batches(config, without=()):
    """What the run should train on, step by step, as rows of input tokens."""
    plan = prepare(config).plan
    steps = [step for step in range(1, plan.total_steps + 1) if step not in without]
    return [[tuple(example.input_tokens.tolist()) for example in plan.batch(step).data] for step in steps]


async def test_broken_connections_and_refusals_change_nothing(faulty, config, service, run, whole):
    faulty.faults = [
        Fault("forward_backward", dropped_before, skip=2),
        Fault("forward_backward", dropped_after, skip=4),
        Fault("forward_backward", refused(500), skip=6),
        Fault("optim_step", dropped_before, skip=2),
        Fault("optim_step", dropped_after, skip=3),
        Fault("optim_step", refused(429, retry_after="1"), skip=5),
        Fault("save_weights", dropped_after, skip=1),
        Fault("save_weights", refused(503), skip=2),
        # The third step's answers come after those of the steps behind it.
        Fault("retrieve_future", late(1.0), on=about(":9")),
        Fault("retrieve_future", refused(500), skip=5, times=2),
        Fault("retrieve_future", dropped_before, skip=9),
        Fault("retrieve_future", dropped_after, skip=12),
    ]
    result = await fit(through(faulty, config), run.path)
    assert len(faulty.struck) == 13, "every fault happened"
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]
    assert faulty.ledger.steps == 12, "no batch twice"


@pytest.fixture
def quick_to_tell(monkeypatch):
    """Trouble is told of after a tenth of the usual time, so that a test's outage can be short."""
    for name in ("_LOOK_SECONDS", "_TROUBLE_AFTER", "_PROBE_EVERY"):
        monkeypatch.setattr(waiting, name, getattr(waiting, name) / 10)


def told(run):
    """What the run said about waiting: (kind, message)."""
    return [(r["kind"], r["message"]) for r in records(run, "notice") if r["kind"] in ("waiting", "answered")]


async def test_an_outage_is_told_of_while_it_lasts_and_changes_nothing(
    faulty, config, service, run, whole, quick_to_tell
):
    lines = []

    def observe(record):
        if record["type"] == "val" and record["step"] == 4:
            faulty.go_away(1.5)
        if record.get("kind") == "waiting":
            follower = RunFollower(run)
            follower.poll()
            lines.append((faulty.away, follower.status().sentence))

    await fit(through(faulty, config), run.path, on_record=observe)
    (_, cause), (_, duration) = told(run)
    assert re.fullmatch(r"waiting since \d\d:\d\d:\d\d for .*step \d+: the service does not answer \(.+\)", cause)
    assert re.fullmatch(r"the service answers again, after \d+ seconds", duration)
    assert lines == [(True, f"{cause[0].upper()}{cause[1:]}.")], "the live view's line says so during the outage"
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter


async def test_a_pause_is_told_of_with_the_services_reason(faulty, config, service, run, whole, quick_to_tell):
    faulty.faults = [
        Fault("retrieve_future", paused("two other runs come first"), on=about(":9"), times=8),
        Fault("optim_step", refused(402, b'{"detail": "the card has expired"}'), skip=7),
        Fault("optim_step", refused(503), skip=10, times=3),
    ]
    await fit(through(faulty, config), run.path)
    kinds, messages = zip(*told(run), strict=True)
    assert kinds == ("waiting", "answered") * (len(kinds) // 2)
    for cause in ("for the answer to step 4: paused: two other runs come first", "402", "the service answers 503"):
        assert any(cause in message for message in messages)
    assert all("the card has expired" in message for message in messages if "402" in message)
    assert history(run) == history(whole.run)


async def test_no_answer_in_time_ends_the_run_which_resumes(faulty, config, service, run, whole):
    faulty.faults = [Fault("retrieve_future", hanging(60), on=about(":17"), times=100)]
    with pytest.raises(ServiceTimeoutError, match=r"training\.service_timeout_s = 1 allows") as late_answer:
        await fit(through(faulty, config, service_timeout_s=1), run.path)
    end = records(run, "end")[-1]
    assert (end["status"], end["reason"]) == ("failed", str(late_answer.value))
    faulty.faults = []
    result = await fit(through(faulty, config), run.path)
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]
