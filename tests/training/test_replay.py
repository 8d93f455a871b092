"""A resume proves itself: what a service does not restore shows in the steps that are run again, and is said."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.faulty_service import Fault, FaultyService, passed_on, passes, refused
from support.small_runs import history, records

from tinker_utils.errors import ResultLostError
from tinker_utils.run.state import FollowingStep
from tinker_utils.training.replay import Replay
from tinker_utils.training.start import fit


@pytest.fixture
def faulty(local_service, key):
    with FaultyService(local_service.base_url) as service:
        yield service


@pytest.fixture
def config(faulty, config):
    """Twelve steps, each with its record, saved after every fourth and not evaluated."""
    return dataclasses.replace(
        config, service=faulty.base_url, log_interval_steps=1, eval_interval_steps=0, eval_at_epoch_end=False
    )


def loading(**changes):
    """Every load of a checkpoint, asked for in another way."""

    def distort(request):
        asked = json.loads(request.body)
        changed = {name: change(asked[name]) for name, change in changes.items()}
        return request.with_body(json.dumps(asked | changed).encode())

    return Fault("load_weights", passed_on, times=1000, distort=distort)


def without_optimizer():
    return loading(optimizer=lambda asked: False)


def lost_after(step, times=1):
    """The answer to the step behind `step` is lost, and the run goes back to its latest checkpoint."""
    return Fault("retrieve_future", refused(410), on=passes, skip=step, times=times)


def said(run):
    """Return what the run said about steps that were run again: (step, message)."""
    return [(r["step"], r["message"]) for r in records(run, "notice") if "is run again" in r["message"]]


async def test_a_lost_optimizer_is_told_of_at_the_second_step_that_is_run_again(faulty, config, run):
    faulty.faults = [lost_after(7), without_optimizer()]
    await fit(config, run.path)
    ((step, message),) = said(run)
    assert step == 6, "the fifth is taken with the weights of the checkpoint alone"
    assert "the weights were restored, but not the optimizer's state" in message
    assert "training.resume_warmup_steps" in message


async def test_each_resume_is_compared_with_what_followed_the_checkpoint_at_first(faulty, config, run):
    faulty.faults = [lost_after(7, times=1000)]
    with pytest.raises(ResultLostError):
        await fit(config, run.path)
    faulty.faults = [lost_after(2, times=1000), without_optimizer()]
    told = []
    with pytest.raises(ResultLostError):
        await fit(config, run.path, on_record=lambda record: told.append((record["step"], record.get("message", ""))))
    assert [step for step, message in told if "is run again" in message] == [6]
    faulty.faults = [without_optimizer()]
    await fit(config, run.path)
    assert [step for step, _ in said(run)] == [6], "an attempt that lost it is nothing to compare with"


async def test_lost_weights_are_told_of_at_the_first_step(faulty, config, run):
    faulty.faults = [lost_after(11), loading(path=lambda path: path.replace("step-000008", "step-000004"))]
    await fit(config, run.path)
    ((step, message),) = said(run)
    assert step == 9
    assert "the weights were not restored" in message


async def test_a_service_that_restores_both_is_not_suspected(faulty, config, run, tmp_path):
    quiet = dataclasses.replace(config, output_dir=tmp_path / "quiet")
    await fit(quiet)
    faulty.faults = [lost_after(6), lost_after(7), lost_after(11)]
    await fit(config, run.path)
    assert len(faulty.struck) == 3
    assert not said(run)
    assert history(run) == history(type(run)(quiet.output_dir))


async def test_a_run_that_resumes_with_other_learning_rates_is_not_compared_with_the_old_ones(faulty, config, run):
    faulty.faults = [lost_after(7, times=1000)]
    with pytest.raises(ResultLostError):
        await fit(config, run.path)
    faulty.faults = []
    await fit(dataclasses.replace(config, epochs=3), run.path)
    assert not said(run)


async def test_the_learning_rate_rises_anew_after_a_resume_where_it_is_to(faulty, config, run):
    faulty.faults = [lost_after(6), without_optimizer()]
    flat = dataclasses.replace(config, lr_schedule="constant", warmup_ratio=0.0, resume_warmup_steps=4)
    await fit(flat, run.path)
    rates = [record["learning_rate"] / 3e-3 for record in records(run, "train")]
    assert rates == pytest.approx([1, 1, 1, 1, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1])
    assert not said(run)


@pytest.mark.parametrize(
    ("losses", "lost"),
    [
        # 400 tokens: a tenth of a nat on each, in either direction, is 0.005 in their mean.
        ([2.004, 1.996, 2.0], None),
        ([2.006], "the weights were not restored"),
        ([2.001, 2.004], None),
        ([2.001, 2.006], "not the optimizer's state"),
        # A first loss that is off by more allows the later ones more.
        ([2.004, 2.015], None),
        ([2.004, 2.025], "not the optimizer's state"),
        # A service that computes alike each time: rounding is no news, and anything else is.
        ([2.000001, 2.00001, 2.00004], None),
        ([2.000001, 2.0, 2.0001], "not the optimizer's state"),
    ],
)
def test_what_is_noise_is_known_from_the_tokens_and_the_first_step(losses, lost):
    replay = Replay(FollowingStep(step, 2.0, 1e-4) for step in (5, 6, 7))
    *before, last = (replay.compare(FollowingStep(5 + i, loss, 1e-4), 400) for i, loss in enumerate(losses))
    assert not any(before)
    assert last is None if lost is None else lost in last


def test_behind_a_step_that_one_of_the_two_skipped_nothing_is_compared():
    replay = Replay(FollowingStep(step, 2.0, 1e-4) for step in (5, 6, 7))
    assert [replay.compare(FollowingStep(step, loss, 1e-4), 400) for step, loss in ((5, 2.0), (7, 3.0), (8, 3.0))] == [
        None, None, None,
    ]  # fmt: skip
