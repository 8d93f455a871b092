"""A run through a service that misbehaves: the real SDK, the embedded server, and a relay between that injects faults.

What is learned, and what is written down of it, must be that of a quiet run.
"""

from __future__ import annotations

import dataclasses

import pytest
from faulty_service import Fault, FaultyService, about, dropped_after, dropped_before, late, refused
from small_runs import adapter_bytes, history

from tinker_utils.preparation import prepare
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
