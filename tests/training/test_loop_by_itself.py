"""The loop and its queue without a server: a small model answers when the test says so."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest
from support.small_model import SmallModel, SmallService
from support.small_runs import records

from tinker_utils.errors import ResultLostError, ServiceError, ServiceTimeoutError
from tinker_utils.plan.cost import Prices
from tinker_utils.training import waiting
from tinker_utils.training.checkpoint_cleanup import CheckpointCleanup
from tinker_utils.training.generations import Generations
from tinker_utils.training.loop import SpoiledStepError, TrainingLoop
from tinker_utils.training.queue import RequestQueue
from tinker_utils.training.recorder import Recorder

# Two steps are kept in flight; behind the second stand its evaluation and its save.
TWO_STEPS = ["step", "step", "evaluation", "save"]


@pytest.fixture
def make(small_plan, logger, spending, run):
    """Make a loop on a model, with some settings changed."""

    def made(model, service=None, skipped=(), **changes):
        batches = dataclasses.replace(small_plan.batches, skipped=frozenset(skipped))
        plan = dataclasses.replace(
            small_plan, batches=batches, config=dataclasses.replace(small_plan.config, **changes)
        )
        recorder = Recorder(plan, logger, spending)
        queue = RequestQueue(plan, model, Generations(plan, logger, model), spending, 0)
        service = service or SmallService()
        return TrainingLoop(plan, queue, recorder, CheckpointCleanup(service, None, shared=False), service)

    return made


async def until(condition):
    """Let the loop go on until something holds; a test that waits in vain is ended by the limit."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def paused(loop, model, run):
    """Begin a run that is paused after its first two steps, and return its task."""
    task = asyncio.ensure_future(loop.run())
    await until(lambda: model.kinds == TWO_STEPS)
    run.request_pause()
    model.answer(4)
    await until(lambda: run.read_state().activity.state == "paused")
    return task


class TestQueue:
    def test_an_evaluation_and_a_save_stand_right_behind_their_step(self, small_plan, logger, spending):
        model = SmallModel()
        queue = RequestQueue(small_plan, model, Generations(small_plan, logger, model), spending, 0)
        assert queue.fill() is None
        assert model.kinds == TWO_STEPS
        assert model.submitted[3].name == "step-000002"
        queue.answered()
        assert queue.fill() is None
        assert model.kinds == [*TWO_STEPS, "step"], "one was answered, and one is submitted"
        assert (queue.first.kind, queue.first.step) == ("step", 2)

    def test_it_ends_with_the_last_step(self, small_plan, logger, spending):
        model = SmallModel()
        queue = RequestQueue(small_plan, model, Generations(small_plan, logger, model), spending, 11)
        queue.fill()
        assert queue.complete
        queue.save_last()
        assert model.kinds == ["step", "evaluation", "save"], "the last step is saved once"
        assert spending.tokens == small_plan.batches.batch(12).tokens

    def test_a_skipped_step_is_sent_to_nobody(self, small_plan, logger, spending):
        batches = dataclasses.replace(small_plan.batches, skipped=frozenset({1}))
        model = SmallModel()
        plan = dataclasses.replace(small_plan, batches=batches)
        queue = RequestQueue(plan, model, Generations(plan, logger, model), spending, 0)
        queue.fill()
        assert (queue.first.kind, queue.first.request.futures, queue.first.tokens) == ("skipped step", (), 0)
        assert model.kinds == ["step", "evaluation", "save", "step"]

    def test_no_step_is_sent_that_would_pass_the_budget(self, small_plan, logger, spending):
        tokens = [small_plan.batches.batch(step).tokens for step in (1, 2)]
        # A dollar a token: the first step fits in, the second and its evaluation do not.
        config = dataclasses.replace(small_plan.config, budget_usd=float(sum(tokens)))
        plan = dataclasses.replace(small_plan, config=config, prices=Prices(1e6, 1e6, 1e6))
        model = SmallModel()
        queue = RequestQueue(plan, model, Generations(plan, logger, model), spending, 0)
        assert queue.fill() == f"the next step would exceed training.budget_usd = ${sum(tokens):g}"
        assert (model.kinds, spending.tokens) == (["step"], tokens[0])
        plan = dataclasses.replace(plan, config=dataclasses.replace(config, eval_at_start=True))
        model = SmallModel()
        queue = RequestQueue(plan, model, Generations(plan, logger, model), spending, 0)
        assert queue.fill() == f"evaluating the base model would exceed training.budget_usd = ${sum(tokens):g}"
        assert (model.kinds, spending.evaluations) == ([], 0)
        # What was spent before a run that begins again may be more than the budget, whether or not it looks first.
        spending.sent(2, sum(tokens))
        plan = dataclasses.replace(plan, config=config)
        queue = RequestQueue(plan, model, Generations(plan, logger, model), spending, 0)
        assert queue.fill() == f"the next step would exceed training.budget_usd = ${sum(tokens):g}"

    def test_what_is_cancelled_is_cancelled_from_the_end(self, small_plan, logger, spending):
        model, cancelled = SmallModel(), []
        queue = RequestQueue(small_plan, model, Generations(small_plan, logger, model), spending, 0)
        queue.fill()
        for request in model.submitted:
            request.future.add_done_callback(lambda _, kind=request.kind: cancelled.append(kind))
        queue.cancel_all()
        assert cancelled == TWO_STEPS[::-1]


class TestLoop:
    async def test_a_run_from_its_first_step_to_its_last(self, make, run):
        model = SmallModel(prompt=True)
        result = await make(model).run()
        assert (result.status, result.steps) == ("completed", 12)
        assert [record["step"] for record in records(run, "val")] == [2, 4, 6, 8, 10, 12]
        assert [record["step"] for record in records(run, "train")] == [3, 6, 9, 12]
        assert model.kinds.count("save") == 6

    async def test_what_was_trained_beyond_an_early_stop_is_no_part_of_the_run(self, make, run):
        # Better by half a nat at step 4, and never again: the second evaluation without improvement follows step 8.
        losses = [2.0, 1.5, 1.6, 1.7, 1.8, 1.9]
        model, service = SmallModel(prompt=True, val_loss=losses.__getitem__), SmallService()
        result = await make(model, service, early_stopping_patience=2).run()
        assert (result.status, result.steps, result.best_step) == ("early_stopped", 8, 4)
        progress = run.read_state().progress
        assert progress.discarded_steps == model.kinds.count("step") - 8 > 0
        assert records(run, "early_stop")[0]["evals_without_improvement"] == 2
        assert "tinker://small/weights/step-000010" in service.deleted, "its save came beyond the end, too"

    async def test_training_that_makes_the_model_worse_is_said_to(self, make, run):
        losses = [1.0, 1.5, 1.25, 1.75, 1.75, 1.75, 1.75]
        model = SmallModel(prompt=True, val_loss=losses.__getitem__)
        result = await make(model, eval_at_start=True, early_stopping_patience=1).run()
        assert model.kinds[:2] == ["evaluation", "step"], "nothing is saved of the base model"
        words = (
            "training made the model worse: the validation loss was 1.0000 before the first step, and at best 1.2500 "
            "after step 4"
        )
        assert result.reason.endswith(f"; {words}")
        assert (result.status, result.steps, result.start_val_loss, result.best_val_loss) == (
            "early_stopped",
            6,
            1,
            1.25,
        )
        first, *later = records(run, "val")
        assert (first["step"], first["is_best"], first["val_diff_best"]) == (0, False, None)
        assert [each["is_best"] for each in later] == [True, True, False]
        (end,) = records(run, "end")
        assert (end["start_val_loss"], end["reason"]) == (1.0, result.reason)

    async def test_a_base_model_whose_loss_is_no_number_ends_the_run(self, make, run):
        model = SmallModel(prompt=True, val_loss=lambda evaluation: math.nan)
        result = await make(model, eval_at_start=True, on_nonfinite="skip").run()
        assert (result.status, result.steps, result.best_checkpoint) == ("failed", 0, None)
        assert "the validation loss of the base model is NaN" in result.reason

    async def test_a_stop_lets_what_is_in_flight_arrive_and_saves(self, make, run):
        model = SmallModel()
        task = asyncio.ensure_future(make(model).run())
        await until(lambda: model.kinds == TWO_STEPS)
        model.answer()
        await until(lambda: len(model.submitted) == 5)
        run.request_stop()
        await until(lambda: (model.pending and model.answer()) or task.done())
        result = await task
        assert (result.status, result.steps) == ("stopped", 3)
        assert [request.kind for request in model.submitted] == [*TWO_STEPS, "step", "save"]
        assert run.read_state().resume_points[-1].progress.step == 3

    async def test_a_pause_submits_nothing(self, make, run):
        model = SmallModel()
        task = await paused(make(model), model, run)
        assert model.kinds == TWO_STEPS
        run.request_resume()
        await until(lambda: (model.pending and model.answer()) or task.done())
        assert (await task).steps == 12

    async def test_a_loss_that_is_not_finite_ends_the_run_before_its_step(self, make, run):
        model = SmallModel(prompt=True, step_loss=lambda step: math.nan if step == 3 else 1.0)
        result = await make(model).run()
        assert (result.status, run.read_state().best_checkpoint) == ("failed", "tinker://small/weights/step-000002")
        assert [record["step"] for record in records(run, "val")] == [2], "that of step 4 is of spoiled weights"

    async def test_or_is_handed_on_where_its_batch_may_be_skipped(self, make):
        model = SmallModel(prompt=True, step_loss=lambda step: math.inf if step == 3 else 1.0)
        with pytest.raises(SpoiledStepError) as spoiled:
            await make(model, on_nonfinite="skip").run()
        assert spoiled.value.step == 4

    async def test_a_skipped_step_whose_evaluation_is_still_not_finite_ends_the_run(self, make, small_plan, run):
        """The batch was not to blame: to skip it again would go on for ever, and be billed each time."""
        model = SmallModel(prompt=True, val_loss=lambda evaluation: math.nan)
        result = await make(model, skipped={2}, on_nonfinite="skip").run()
        assert (result.status, run.read_state().resume_points) == ("failed", [])

    async def test_a_pause_that_a_stop_ends_is_not_said_to_be_over(self, make, run):
        model = SmallModel()
        task = await paused(make(model), model, run)
        run.request_stop()
        await until(lambda: (model.pending and model.answer()) or task.done())
        assert (await task).status == "stopped"
        assert [record["kind"] for record in records(run, "notice")] == ["paused", "stopping"]

    async def test_a_request_that_was_cancelled_is_a_lost_result(self, make):
        model = SmallModel()
        task = asyncio.ensure_future(make(model).run())
        await until(lambda: model.kinds == TWO_STEPS)
        model.submitted[0].future.cancel()
        with pytest.raises(ResultLostError, match="step 1: the request was cancelled"):
            await task

    async def test_an_answer_that_is_a_failure_ends_it_with_everything_in_flight_cancelled(self, make, run):
        model = SmallModel()
        task = asyncio.ensure_future(make(model).run())
        await until(lambda: model.kinds == TWO_STEPS)
        model.submitted[0].future.set_exception(ServiceError("it is refused."))
        with pytest.raises(ServiceError, match=r"it is refused\."):
            await task
        assert all(request.future.cancelled() for request in model.submitted[1:])


class TestWaiting:
    async def test_trouble_is_told_while_it_lasts_and_its_end_too(self, make, run, monkeypatch):
        monkeypatch.setattr(waiting, "_TROUBLE_AFTER", 0.0)
        monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.02)
        model, service = SmallModel(), SmallService()
        service.watch.known = "the service answers 503 Service Unavailable"
        task = asyncio.ensure_future(make(model, service).run())
        await until(lambda: run.metrics.exists() and records(run, "notice"))
        service.watch.known = "paused: no capacity"
        await until(lambda: len(records(run, "notice")) == 2)
        assert run.read_state().activity.state == "waiting"
        model.answer()
        await until(lambda: len(records(run, "notice")) == 3)
        kinds = [(record["kind"], record["message"].partition(": ")[2]) for record in records(run, "notice")]
        assert kinds == [
            ("waiting", "the service answers 503 Service Unavailable"),
            ("waiting", "paused: no capacity"),
            ("answered", ""),
        ]
        task.cancel()  # the first one asks for a stop
        await until(lambda: (model.pending and model.answer()) or task.done())
        assert (await task).status == "stopped"

    async def test_it_gives_up_in_time(self, make, monkeypatch):
        monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.02)
        monkeypatch.setattr(waiting, "MIN_SECONDS", 0.0)
        with pytest.raises(ServiceTimeoutError, match=r"training\.service_timeout_s = 0\.1 allows"):
            await make(SmallModel(), service_timeout_s=0.1).run()

    async def test_a_service_that_has_ended_is_not_waited_for(self, make, monkeypatch):
        monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.02)
        model, service = SmallModel(), SmallService()
        service.ended = ServiceError("the embedded service ended.")
        with pytest.raises(ServiceError, match="the embedded service ended"):
            await make(model, service).run()
        assert all(request.future.cancelled() for request in model.submitted)
