"""A run through a service that misbehaves: the real SDK, the embedded server, and a relay between that injects faults.

What is learned, and what is written down of it, must be that of a quiet run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from support.faulty_service import (
    Fault,
    FaultyService,
    about,
    dropped_after,
    dropped_before,
    hanging,
    late,
    numbered,
    overflowing,
    passed_on,
    passes,
    paused,
    refused,
    rewritten,
)
from support.local_service import post
from support.small_runs import adapter_bytes, history, records

from tinker_utils.errors import ResultLostError, ServiceError, ServiceTimeoutError
from tinker_utils.local.protocol.tensors import parse_forward_backward
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.status import RunFollower
from tinker_utils.training import waiting
from tinker_utils.training.start import fit, fit_blocking

pytestmark = pytest.mark.usefixtures("key")


@pytest.fixture
def faulty(local_service):
    with FaultyService(local_service.base_url) as service:
        yield service


def through(faulty, config, **changes):
    return dataclasses.replace(config, service=faulty.base_url, **changes)


def planned_batches(config, without=()):
    """Return what the run should train on, step by step, as rows of input tokens."""
    plan = prepare(config).batches
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
        # The fourth step's answer comes after those of the steps behind it.
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
    """Return what the run said about waiting: (kind, message)."""
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
    capacity = Fault("retrieve_future", paused("two other runs come first"), on=about(":9"), times=1000)
    payment = Fault("optim_step", refused(402, b'{"detail": "the card has expired"}'), skip=7, times=1)
    down = Fault("optim_step", refused(503), skip=11, times=1000)
    faulty.faults = [capacity, payment, down]

    def observe(record):  # what has been told of ends
        if record.get("kind") == "waiting":
            capacity.times *= "two other runs" not in record["message"]
            down.times *= "503" not in record["message"]

    await fit(through(faulty, config), run.path, on_record=observe)
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
    # A poll that hangs is no refusal: nothing is known of trouble, but the answer is overdue.
    assert re.fullmatch(r"waiting since \d\d:\d\d:\d\d for the evaluation after step 6", told(run)[-1][1])
    faulty.faults = []
    result = await fit(through(faulty, config), run.path)
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]


FAILED = b'{"error": "a worker died", "category": "server"}'


async def test_after_a_lost_result_the_run_goes_back_by_itself(faulty, config, service, run, whole):
    faulty.faults = [
        Fault("retrieve_future", refused(410), on=passes, skip=2),
        Fault("retrieve_future", refused(404), on=passes, skip=4),
        Fault("retrieve_future", refused(200, FAILED), on=passes, skip=6),
    ]
    result = await fit(through(faulty, config), run.path)
    assert len(faulty.struck) == 3
    assert sum("went back to step" in r["message"] for r in records(run, "notice")) >= 1, "the last one is told of"
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]
    # What was trained for nothing was paid for all the same.
    assert run.read_state().spent.tokens >= faulty.ledger.tokens > result.tokens


def ending_its_session(local_service):
    """Return what happens to a request whose session has just ended: the service answers 410 to all of its requests."""

    def end(request):
        body = request.body.decode("latin-1")
        session = re.search(r"([0-9a-f-]{36}):train:", body)[1]
        ended, _ = post(local_service, f"sessions/{session}/finish", {"reason": {"type": "idle"}})
        assert ended == 204
        return request

    return end


@pytest.mark.parametrize("status", [404, 410])
async def test_a_request_that_is_refused_for_good_sends_the_run_back(faulty, config, service, run, whole, status):
    faulty.faults = [
        Fault("forward_backward", refused(status), skip=3),
        Fault("optim_step", refused(status), skip=9),
        Fault("save_weights", refused(status), skip=4),
    ]
    await fit(through(faulty, config), run.path)
    assert len(faulty.struck) == 3
    assert any("went back to step" in r["message"] for r in records(run, "notice"))
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter


async def test_when_its_session_has_ended_the_run_goes_on_in_a_new_one(
    faulty, config, service, run, whole, local_service
):
    # The sixth step is submitted when nothing else is in flight, as after a night in which the machine slept.
    ending = ending_its_session(local_service)
    faulty.faults = [Fault("forward_backward", passed_on, skip=5, on=trains, distort=ending)]
    await fit(through(faulty, config, steps_in_flight=1), run.path)
    assert faulty.struck == ["forward_backward"]
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter


def loads(request):
    """Return whether a poll asks whether a checkpoint was loaded."""
    return request.headers.get("x-tinker-request-type") == "LoadWeights"


async def test_a_result_that_is_lost_while_the_run_goes_back_does_not_end_it(faulty, config, service, run, whole):
    faulty.faults = [
        Fault("retrieve_future", refused(410), on=passes, skip=5),
        Fault("retrieve_future", refused(410), on=loads, times=2),
    ]
    await fit(through(faulty, config), run.path)
    assert len(faulty.struck) == 3
    assert history(run) == history(whole.run)
    assert adapter_bytes(run, service) == whole.adapter


async def test_an_answer_of_the_wrong_length_sends_the_run_back(faulty, config, run, whole):
    def shortened(output):
        field = output.loss_fn_outputs[0].fields["logprobs"]
        field.data = field.data[:8]
        field.offsets = np.array([0, 8, *[8] * (len(field.offsets) // 8 - 2)], "<i8").tobytes()

    faulty.faults = [Fault("retrieve_future", rewritten(shortened), on=about(":9"))]
    await fit(through(faulty, config), run.path)
    assert any("cannot be read" in r["message"] for r in records(run, "notice"))
    assert history(run) == history(whole.run)


async def test_results_that_are_lost_again_and_again_end_the_run_which_resumes(faulty, config, run, whole):
    faulty.faults = [Fault("retrieve_future", refused(410), on=passes, skip=2, times=1000)]
    with pytest.raises(ResultLostError, match="step 3: RetryableException"):
        await fit(through(faulty, config), run.path)
    assert records(run, "end")[-1]["status"] == "failed"
    faulty.faults = []
    await fit(through(faulty, config), run.path)
    assert history(run) == history(whole.run)


async def test_when_the_sdk_gives_up_the_run_goes_on_with_a_new_session(faulty, config, run, whole, monkeypatch):
    from tinker.lib import internal_client_holder

    # The SDK gives up on a request after five minutes: to it, each look at the clock is one of a hundred seconds later.
    clock = itertools.count(step=100)
    monkeypatch.setattr(
        internal_client_holder, "time", SimpleNamespace(time=lambda: next(clock), monotonic=time.monotonic)
    )
    faulty.faults = [Fault("save_weights", dropped_before, skip=1, times=4)]
    result = await fit(through(faulty, config), run.path)
    assert any("APIConnectionError" in r["message"] for r in records(run, "notice"))
    assert history(run) == history(whole.run)
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]


def trains(request):
    """Return whether a request is to train on its batch, and not to evaluate it."""
    return not parse_forward_backward(request.body).forward_only


# Sequence numbers: each step has two, each evaluation and each save one. The fifth step's are 13 and 14.
FIFTH = numbered(13)


async def test_a_loss_that_is_not_finite_stops_the_run_and_its_best_checkpoint_is_kept(faulty, config, run, whole):
    faulty.faults = [Fault("forward_backward", passed_on, on=FIFTH, distort=overflowing)]
    result = await fit(through(faulty, config), run.path)
    assert result.status == "failed"
    assert "the loss or the gradient of step 5 is not finite" in result.reason
    assert "training.on_nonfinite: skip" in result.reason
    losses = {r["step"]: r["val_loss"] for r in records(run, "val")}
    assert losses == {r["step"]: r["val_loss"] for r in records(whole.run, "val") if r["step"] <= 4}
    assert (result.best_val_loss, result.best_step) == min((loss, step) for step, loss in losses.items())
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[: result.best_step]


async def test_a_batch_whose_loss_is_not_finite_can_be_left_out(faulty, config, service, run, tmp_path):
    faulty.faults = [Fault("forward_backward", passed_on, on=FIFTH, distort=overflowing)]
    result = await fit(through(faulty, config, on_nonfinite="skip"), run.path)
    assert result.status == "completed"
    assert run.read_state().progress.skipped_steps == 1
    (told_of,) = [r["message"] for r in records(run, "notice") if "is skipped" in r["message"]]
    assert "step 5" in told_of
    assert "went back to step 4" in told_of
    batches = planned_batches(config, without={5})
    last = run.read_state().resume_points[-1].path
    assert faulty.ledger.batches_in(last) == batches

    # The same by hand: eleven steps in a row, through the SDK alone.
    plan = prepare(config)
    model = service.new_model(config)
    for step in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12):
        model.submit_step(plan.batches.batch(step), plan.learning_rate(step), 0.0, 0.0)
    by_hand = model.submit_save("by-hand").result()
    weights = [
        (
            service.download_adapter(path, tmp_path / f"adapter of {name}")[0].parent / "adapter_model.safetensors"
        ).read_bytes()
        for name, path in (("run", last), ("hand", by_hand))
    ]
    assert weights[0] == weights[1]


def test_losses_that_are_not_finite_again_and_again_stop_the_run_all_the_same(faulty, config, run):
    faulty.faults = [Fault("forward_backward", passed_on, distort=overflowing, skip=6, times=1000, on=trains)]
    result = fit_blocking(through(faulty, config, on_nonfinite="skip"), run.path)
    assert result.status == "failed"
    assert run.read_state().skipped_steps == [7, 8, 9]


def no_number(output):
    """Log-probabilities as spoiled weights give them."""
    for outputs in output.loss_fn_outputs:
        field = outputs.fields["logprobs"]
        field.data = np.full(len(field.data) // 4, np.nan, "<f4").tobytes()


# The evaluation after step 4 has sequence number 11.
async def test_an_evaluation_that_gives_no_number_stops_the_run_at_sound_weights(faulty, config, run, whole):
    faulty.faults = [Fault("retrieve_future", rewritten(no_number), on=about(":11"))]
    result = await fit(through(faulty, config), run.path)
    assert result.status == "failed"
    assert "the validation loss after step 4 is NaN" in result.reason
    assert run.read_state().resume_points[-1].progress.step == 2, "not the weights that were spoiled"
    assert faulty.ledger.batches_in(result.best_checkpoint) == planned_batches(config)[:2]
    await fit(through(faulty, config), run.path)
    assert history(run) == history(whole.run)


async def test_an_evaluation_that_gives_no_number_can_cost_one_batch(faulty, config, run):
    faulty.faults = [Fault("retrieve_future", rewritten(no_number), on=about(":11"))]
    result = await fit(through(faulty, config, on_nonfinite="skip"), run.path)
    assert result.status == "completed"
    assert run.read_state().skipped_steps == [4]
    last = run.read_state().resume_points[-1].path
    assert faulty.ledger.batches_in(last) == planned_batches(config, without={4})


async def test_a_service_without_metrics_is_read_by_its_logprobs(faulty, config, run, whole):
    faulty.faults = [Fault("retrieve_future", rewritten(lambda output: output.metrics.clear()), times=1000)]
    await fit(through(faulty, config), run.path)
    assert history(run) == history(whole.run)


async def test_a_service_without_logprobs_is_read_by_its_sums(faulty, config, run, whole):
    def without_logprobs(output):
        for record in output.loss_fn_outputs:
            record.fields.clear()

    faulty.faults = [Fault("retrieve_future", rewritten(without_logprobs), times=1000)]
    await fit(through(faulty, config), run.path)
    for read, known in zip(records(run, "val"), records(whole.run, "val"), strict=True):
        assert read["val_loss_stderr"] is None, "the losses of single examples are not known"
        assert (read["val_bits_per_byte"], known["val_bits_per_byte"] is None) == (None, False)
        assert read["val_loss"] == pytest.approx(known["val_loss"], rel=1e-5)


async def test_a_service_that_gives_neither_is_refused_in_one_sentence(faulty, config, run):
    def with_nothing(output):
        output.metrics.clear()
        for record in output.loss_fn_outputs:
            record.fields.clear()

    faulty.faults = [Fault("retrieve_future", rewritten(with_nothing), times=1000)]
    with pytest.raises(ServiceError, match="neither logprobs nor loss:sum"):
        await fit(through(faulty, config), run.path)


async def test_a_sum_that_disagrees_with_the_logprobs_is_told_of_once(faulty, config, run, whole):
    def doubled(output):
        output.metrics["loss:sum"] *= 2

    faulty.faults = [Fault("retrieve_future", rewritten(doubled), times=1000, on=passes)]
    await fit(through(faulty, config), run.path)
    (warning,) = [r["message"] for r in records(run, "notice") if "loss:sum" in r["message"]]
    first, twice = (float(number) for number in re.findall(r"[\d.]+(?= nats|;)", warning))
    assert (first, twice) == pytest.approx((2 * twice, twice), rel=1e-4)
    assert history(run) == history(whole.run)


@pytest.mark.parametrize("evaluations", [False, True])
async def test_a_sum_that_is_no_number_is_told_of_once(faulty, config, run, whole, evaluations):
    def spoiled(output):
        output.metrics["loss:sum"] = math.nan

    kind = "Forward" if evaluations else "ForwardBackward"
    faulty.faults = [
        Fault(
            "retrieve_future",
            rewritten(spoiled),
            times=1000,
            on=lambda request: request.headers.get("x-tinker-request-type") == kind,
        )
    ]
    await fit(through(faulty, config), run.path)
    (warning,) = [r["message"] for r in records(run, "notice") if "loss:sum" in r["message"]]
    assert warning.startswith("the service's loss:sum is nan nats")
    assert history(run) == history(whole.run)
