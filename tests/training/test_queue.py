"""The loop against a service that works in cycles: the service counts them, and no clock is read here."""

from __future__ import annotations

import dataclasses

import pytest
from support.clocked_service import ClockedService
from support.small_runs import history, records

from tinker_utils.plan.preparing import prepare
from tinker_utils.service.client import connect
from tinker_utils.training.start import fit

pytestmark = pytest.mark.usefixtures("key")
CYCLE_S = 0.4


@pytest.fixture
def clocked(local_service):
    with ClockedService(local_service.base_url, CYCLE_S) as service:
        yield service


def test_a_loop_that_waits_for_each_step_takes_two_cycles_a_step(clocked, config, tmp_path):
    """What the clock is there to show, and a check of the clock itself."""
    through = dataclasses.replace(config, service=clocked.base_url)
    plan = prepare(config).batches
    with connect(through, tmp_path) as service:
        model = service.new_model(through)
        for step in range(1, 6):
            model.submit_step(plan.batch(step), 1e-3, 0.0, 0.0).result()
    assert clocked.steps == 5
    assert clocked.cycles >= 9, "the four steps that follow one each miss a tick"


async def test_the_service_never_waits_for_a_step_an_evaluation_or_a_save(clocked, config, run, whole):
    await fit(dataclasses.replace(config, service=clocked.base_url), run.path)
    assert clocked.idle == 0
    # Twelve steps and six evaluations; saves ride along. A tick may fall between two requests that belong together.
    assert clocked.steps == 12
    assert 18 <= clocked.cycles <= 20
    assert history(run) == history(whole.run)


async def test_steps_beyond_an_early_stop_are_no_part_of_the_result_and_are_counted(clocked, config, run, whole):
    impatient = dataclasses.replace(
        config, service=clocked.base_url, early_stopping_patience=1, early_stopping_threshold=100.0
    )
    result = await fit(impatient, run.path)
    assert (result.status, result.steps) == ("early_stopped", 4)
    progress = run.read_state().progress
    assert progress.discarded_steps == clocked.steps - 4 > 0
    plan = prepare(config).batches
    assert progress.discarded_tokens == sum(plan.batch(step).tokens for step in range(5, clocked.steps + 1))
    assert run.read_state().spent.tokens == result.tokens + progress.discarded_tokens
    assert [r["step"] for r in records(run, "val")] == [2, 4]
