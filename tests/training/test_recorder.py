"""The recorder by itself: what it writes of answers that a test makes up."""

from __future__ import annotations

import dataclasses
import math

import pytest
from support.small_model import loss_of
from support.small_runs import records

from tinker_utils.plan.cost import Prices
from tinker_utils.run import figures
from tinker_utils.run.figures import Figure
from tinker_utils.run.status import RunFollower
from tinker_utils.service.model import BatchLoss
from tinker_utils.training.recorder import Recorder
from tinker_utils.training.resuming import resume_points
from tinker_utils.views.html import status_html


@pytest.fixture
def recorder(small_plan, logger, spending, run):
    return Recorder(small_plan, logger, spending)


def train(recorder, plan, step, per_token=1.0, of_service=None, log=False):
    batch = plan.batches.batch(step)
    recorder.trained(step, batch, loss_of(batch, per_token), of_service or {}, log)
    return batch


def evaluate(recorder, plan, step, per_token):
    return recorder.evaluated(step, [loss_of(batch, per_token) for look in plan.looks(step) for batch in look.batches])


def test_a_train_record_pools_its_steps_by_their_tokens(recorder, small_plan, run):
    first = train(recorder, small_plan, 1, per_token=1.0)
    second = train(recorder, small_plan, 2, per_token=4.0, of_service={"grad_norm": 2.5, "loss": 9.0}, log=True)
    (record,) = records(run, "train")
    nats = first.completion_tokens * 1.0 + second.completion_tokens * 4.0
    assert record["train_loss_total"] == pytest.approx(nats)
    assert record["train_loss"] == pytest.approx(nats / (first.completion_tokens + second.completion_tokens))
    assert (record["tokens"], record["tokens_seen"]) == (first.tokens + second.tokens,) * 2
    assert (record["step"], record["epoch"], record["grad_norm"], record["loss"]) == (2, 1, 2.5, 9.0)
    train(recorder, small_plan, 3, log=True)
    assert records(run, "train")[1]["train_loss"] == pytest.approx(1.0), "the next record begins with nothing"


def test_the_services_own_figures_replace_none_of_ours(recorder, small_plan, run):
    train(recorder, small_plan, 1, of_service={"train_loss": 77.0, "tokens": 1.0, "norm:last": 3.0}, log=True)
    (record,) = records(run, "train")
    assert (record["train_loss"], record["norm"]) == (pytest.approx(1.0), 3.0)
    assert record["tokens"] == small_plan.batches.batch(1).tokens


def test_a_record_without_completion_tokens_is_not_written(recorder, run):
    recorder.record_window()
    recorder.skipped(3)  # a step at which a record is due
    assert not run.metrics.read_text()
    assert recorder.progress.skipped_steps == 1


def test_a_sum_that_is_not_ours_is_said_once(recorder, small_plan, run):
    batch = small_plan.batches.batch(1)
    ours = loss_of(batch)
    recorder.trained(1, batch, BatchLoss(ours.totals, ours.total, ours.total * 1.0005), {}, False)
    assert not records(run, "notice"), "rounding is no news"
    for step in (2, 3):
        recorder.trained(step, batch, BatchLoss(ours.totals, ours.total, ours.total / 4), {}, False)
    (notice,) = records(run, "notice")
    assert f"loss:sum is {ours.total / 4:.6g} nats, but its logprobs give {ours.total:.6g}" in notice["message"]


def test_an_evaluation_says_how_far_it_is_from_the_best(recorder, small_plan, run):
    assert evaluate(recorder, small_plan, 2, 2.0).is_best
    assert not evaluate(recorder, small_plan, 4, 2.5).is_best
    first, second = records(run, "val")
    assert (first["val_loss"], first["val_diff_best"], first["is_best"]) == (2.0, None, True)
    assert (second["val_diff_best"], second["val_diff_best_stderr"]) == (pytest.approx(0.5), pytest.approx(0.0))
    assert second["perplexity"] == pytest.approx(math.exp(2.5))
    assert second["completion_tokens"] == sum(example.completion_tokens for example in small_plan.valid.examples)
    assert recorder.best == 2.0
    assert recorder.progress.eval_tokens == 2 * small_plan.valid.tokens


def test_checkpoints_that_are_neither_best_nor_latest_are_given_up(recorder, small_plan, run):
    released = []
    for step, loss in ((2, 2.0), (4, 1.0), (6, 3.0), (8, 4.0)):
        evaluate(recorder, small_plan, step, loss)
        released.append([checkpoint.step for checkpoint in recorder.saved(step, f"tinker://small/weights/{step}")])
    # 4 is the best, and 4 and 8 are periodic: nothing is given up with 8 but 6.
    assert released == [[], [2], [], [6]]
    assert [record["kind"] for record in records(run, "checkpoint")] == ["best", "best", "latest", "periodic"]
    assert run.read_state().best_checkpoint == "tinker://small/weights/4"


def test_a_periodic_best_is_given_up_to_expire_and_stays_until_then(recorder, small_plan, run):
    for step, loss in ((4, 2.0), (6, 1.0)):
        evaluate(recorder, small_plan, step, loss)
        released = recorder.saved(step, f"tinker://small/weights/{step}")
    assert [(checkpoint.step, checkpoint.periodic) for checkpoint in released] == [(4, True)]
    state = run.read_state()
    assert [checkpoint.step for checkpoint in state.periodic_checkpoints] == [4]
    assert [point.path for point in state.resume_points] == [f"tinker://small/weights/{step}" for step in (4, 6)]


def test_a_run_ends_with_its_best_or_else_its_latest(recorder, small_plan, run):
    recorder.publish()
    assert run.read_state().best_checkpoint is None
    recorder.saved(2, "tinker://small/weights/2")
    recorder.saved(3, "tinker://small/weights/3")
    assert run.read_state().best_checkpoint == "tinker://small/weights/3"
    evaluate(recorder, small_plan, 4, 2.0)
    recorder.saved(4, "tinker://small/weights/4")
    recorder.saved(7, "tinker://small/weights/7")
    assert run.read_state().best_checkpoint == "tinker://small/weights/4"


def test_what_it_saved_is_where_the_next_one_begins(recorder, small_plan, logger, spending, run):
    train(recorder, small_plan, 1)
    evaluate(recorder, small_plan, 2, 2.0)
    recorder.saved(2, "tinker://small/weights/2")
    train(recorder, small_plan, 3, per_token=9.0)  # is lost with the process
    point, start = resume_points(run.read_state())
    assert (point.path, point.progress.step, start) == ("tinker://small/weights/2", 1, *resume_points(None))
    again = Recorder(small_plan, logger, spending)
    assert (again.best, again.progress.window_nll) == (2.0, small_plan.batches.batch(1).completion_tokens)
    evaluate(again, small_plan, 4, 2.25)
    assert records(run, "val")[-1]["val_diff_best"] == pytest.approx(0.25), "the evaluations are read from their files"


def test_evaluations_that_an_older_version_did_not_count_are_paid_for(recorder, small_plan, logger, spending, run):
    """Samples are billed by evaluation: without their number, the records of a resumed run would be too cheap."""
    train(recorder, small_plan, 1)
    for step in (2, 4):
        evaluate(recorder, small_plan, step, 2.0)
    recorder.saved(4, "tinker://small/weights/4")
    logger.state.resume_points[-1].progress.evaluations = 0
    prices = Prices(train=1.0, prefill=2.0, sample=3.0)
    plan = dataclasses.replace(small_plan, prices=prices, sampled=small_plan.chats[0].conversations([0, 1]))
    again = Recorder(plan, logger, spending)
    again.trained(5, (batch := plan.batches.batch(5)), loss_of(batch, 1.0), {}, log=True)
    trained = small_plan.batches.batch(1).tokens + batch.tokens
    evaluated, prompts = 2 * plan.valid.tokens, sum(map(len, plan.sample_prompts))
    dollars = (trained * 1 + evaluated * 2 + 2 * (prompts * 2 + 2 * 128 * 3)) / 1e6
    assert records(run, "train")[-1]["cost_usd"] == pytest.approx(dollars)


def test_no_more_than_eight_points_are_kept(recorder, small_plan, run):
    for step in range(4, 60, 4):
        recorder.saved(step, f"tinker://small/weights/{step}")
    points = run.read_state().resume_points
    assert [point.path.rpartition("/")[2] for point in points] == [str(step) for step in range(28, 60, 4)]


def test_a_new_figure_is_one_entry(recorder, small_plan, run, monkeypatch):
    """It is written, logged, kept by readers and shown, and nothing else had to know of it."""
    new = Figure(
        "prompt_share", "the share of prompt tokens", logged=True, absent=math.nan, label="prompts",
        of=lambda w: 1 - w.progress.window_completion_tokens / w.progress.window_tokens, format="{:.0%}".format,
    )  # fmt: skip
    monkeypatch.setattr(figures, "TRAIN", (*figures.TRAIN, new))
    batch = train(recorder, small_plan, 1, log=True)
    share = 1 - batch.completion_tokens / batch.tokens
    assert records(run, "train")[0]["prompt_share"] == share
    assert f"prompt_share={share:.6g}" in run.log.read_text()
    follower = RunFollower(run)
    follower.poll()
    assert follower.log.train["prompt_share"].tolist() == [share]
    assert f"<span>prompts</span><b>{share:.0%}</b>" in status_html(follower.status(), "nats/token")
