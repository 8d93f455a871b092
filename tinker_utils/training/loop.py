"""The training loop: keeps steps in flight, takes their answers in order, and ends the run in time.

What is in flight, and when. A step is a `forward_backward` and an `optim_step`, submitted together. Where an evaluation
is due after it, `forward` over the validation set and `save_state` follow at once, behind the step and before the next
one. Nothing is waited for in between: `training.steps_in_flight` steps (4, or 2 with `service: local`), and whatever
stands behind them, are with the service while the loop waits for the first answer. With 2, and evaluations of the base
model and after every second step:

    submitted at first     evaluation 0, step 1, step 2, evaluation 2, save 2
    evaluation 0 …         nothing
    step 1 is answered     step 3
    step 2 is answered     step 4, evaluation 4, save 4
    evaluation 2 …         nothing: steps 3 and 4 are in flight already

The service runs the requests of one model in the order of their submission. So evaluation 2 sees the weights after step
2 and save 2 holds them, although steps 3 and 4 were submitted before its outcome is known. Where evaluation 2 ends the
run, what was submitted behind its save is discarded, and counted.

Samples, if asked for, are submitted behind the save, by a sampler that has the same weights. They never end a run; but
a save is recorded, and the run could be resumed from it, only when the samples of its weights are there, or
have failed, or half a minute has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

from tinker_utils.basics.threads import in_background
from tinker_utils.errors import CheckpointGoneError, RunDirectoryError, ServiceError
from tinker_utils.plan.plan import Plan
from tinker_utils.run.state import Status, TrainingResult
from tinker_utils.service.client import Service
from tinker_utils.training.checkpoint_cleanup import CheckpointCleanup, needed
from tinker_utils.training.interrupts import Interrupts
from tinker_utils.training.queue import RequestQueue, Work
from tinker_utils.training.recorder import Recorder
from tinker_utils.training.waiting import AnswerTimes, Waiting, as_answer

_PAUSE_POLL_SECONDS = 0.2
# Batches skipped in a row, after which the run stops all the same.
_MAX_SKIPPED_IN_A_ROW = 3
_ADVICE = (
    "lower training.learning_rate, set training.grad_clip_norm, or, if it is not set yet, set "
    "training.on_nonfinite: skip"
)
_NOT_FINITE = f"the loss or the gradient of step {{step}} is not finite: {_ADVICE}"
_NO_NUMBER = f"the validation loss after step {{step}} is NaN, so the weights are not usable: {_ADVICE}"
_NO_START = "the validation loss of the base model is NaN: nothing can be learned from it; try another service or model"
_TIDY_SECONDS = 30
# Seconds until an embedded server that was killed is seen to have ended; its connections break first.
_ENDING_SECONDS = 0.5


class SpoiledStepError(Exception):
    """The weights after a step are not to be used: its loss, its gradient or their evaluation was not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} step {step} was not finite")
        self.step = step


class TrainingLoop:
    """One run's loop, from the step that its recorder stands at to its end. `run` is all there is to call, once.

    `ending` says, once that is so, why no further step is to be submitted, because of a wish or of what was learned.

    Args:
        plan: what to train on and when to look and save.
        queue: submits requests, and hands out what is answered next.
        recorder: takes the answers, and writes what they mean.
        cleanup: takes checkpoints that are needed no more.
        service: tells whether it has ended.
    """

    def __init__(
        self, plan: Plan, queue: RequestQueue, recorder: Recorder, cleanup: CheckpointCleanup, service: Service
    ) -> None:
        self._plan = plan
        self._queue = queue
        self._recorder = recorder
        self._cleanup = cleanup
        self._service = service

        self._logger = recorder.logger
        self._generations = queue.generations
        self._waiting = Waiting(self._logger, service, plan.config.service_timeout_s, self._interrupt)
        self._answer_times = AnswerTimes()
        self.ending: tuple[Status, str] | None = None
        self._last_step: int | None = None  # the last that counts, where not all do
        self._paused = self._interrupted = False
        self._interrupts = Interrupts()

    async def run(self) -> TrainingResult:
        """Train to the end, whatever ends it.

        Raises:
            ServiceError: the service gave up on a request, or answered what cannot be used.
            SpoiledStepError: a loss or gradient was not finite, and its batch may be skipped.
        """
        try:
            with self._interrupts:
                if self._recorder.stopper.exhausted:
                    self._end_early()
                while True:
                    self._heed_requests()
                    if not self._paused and self.ending is None and (reason := self._queue.fill()):
                        self.ending = ("stopped", reason)
                    if (self.ending is not None or self._queue.complete) and self._last_step is None:
                        self._queue.save_last()
                    if work := self._queue.first:
                        await self._take(work)
                    elif self._paused:
                        await self._wait_while_paused()
                    else:
                        return await self._finish()
        except BaseException:
            self._queue.cancel_all()  # it counts as spent all the same
            with contextlib.suppress(RunDirectoryError):
                self._recorder.publish()
            raise

    # Taking answers

    async def _take(self, work: Work) -> None:
        """Wait for an answer and act on it."""
        self._logger.activity(*self._doing(work))
        answers = [as_answer(future) for future in work.request.futures]
        overdue_after = self._answer_times.overdue_after(work.tokens)
        seconds = await self._waiting.until(answers, work.step, work.words, overdue_after)
        self._queue.answered()
        if work.kind == "step":
            self._answer_times.took(seconds, work.tokens)
        else:
            self._recorder.rested(seconds)
        if self._last_step is not None and work.step > self._last_step:
            self._discard(work)
        elif work.kind == "step":
            self._trained(work)
        elif work.kind == "skipped step":
            self._recorder.skipped(work.step)
        elif work.kind == "evaluation":
            self._evaluated(work)
        else:
            await self._generations_written(work.step)
            self._cleanup.release(self._recorder.saved(work.step, work.request.result()))
        self._generations.record(self._last_step)

    def _doing(self, work: Work) -> tuple[str, str]:
        if self.ending is not None:
            return "stopping", f"finishing the requests in flight: {self.ending[1]}"
        if work.kind == "evaluation":
            return "evaluating", f"evaluating after step {work.step}" if work.step else "evaluating the base model"
        return "training", "training"

    def _trained(self, work: Work) -> None:
        loss, figures = work.request.result()
        finite = math.isfinite(loss.total) and all(math.isfinite(value) for value in figures.values())
        if not finite and self._may_skip(work.step):
            raise SpoiledStepError(work.step, "the loss or the gradient of")
        due = work.step % self._plan.config.log_interval_steps == 0 or work.step == self._plan.total_steps
        self._recorder.trained(work.step, work.batches[0], loss, figures, log=due or not finite)
        if not finite:
            # The step's own evaluation and save, already in flight, are of spoiled weights and must not count.
            self._cut(work.step - 1, "failed", _NOT_FINITE.format(step=work.step))

    def _may_skip(self, step: int) -> bool:
        """Return whether a batch may be skipped: if it was already, or several before it were, it is not the cause."""
        skipped = self._plan.batches.skipped
        too_many = step in skipped or skipped.issuperset(range(step - _MAX_SKIPPED_IN_A_ROW, step))
        return self._plan.config.on_nonfinite == "skip" and self.ending is None and not too_many

    def _evaluated(self, work: Work) -> None:
        losses = work.request.result()
        # NaN comes of spoiled weights, also where no step has shown it: the save behind it must not count. Infinity
        # may be one token that the model holds for impossible.
        spoiled = any(math.isnan(loss.total) for loss in losses)
        if spoiled and work.step and self._may_skip(work.step):
            raise SpoiledStepError(work.step, "the loss of the evaluation after")
        decision = self._recorder.evaluated(work.step, losses)
        if spoiled:
            self._cut(max(work.step - 1, 0), "failed", _NO_NUMBER.format(step=work.step) if work.step else _NO_START)
        elif decision.stop:
            self._end_early()

    async def _generations_written(self, step: int) -> None:
        """Wait for samples of these weights: once the save is recorded, a resumed run never asks for them again."""
        began = time.monotonic()
        try:
            for _ in range(_TIDY_SECONDS):
                if await self._generations.drain(self._last_step, 1 - _ENDING_SECONDS, until=step):
                    break
                # Where they do not come because the service has ended, the resumed run asks for them again.
                await asyncio.sleep(_ENDING_SECONDS)
                self._service.check_alive()
        except asyncio.CancelledError:
            self._interrupt()
        self._recorder.rested(time.monotonic() - began)

    def _discard(self, work: Work) -> None:
        """Count what was trained beyond the run's last step, and keep nothing of it."""
        if work.kind == "step":
            self._recorder.discarded(work.tokens)
        elif work.kind == "save":
            self._cleanup.remove(work.request.result())

    # Pausing, stopping, ending

    def _heed_requests(self) -> None:
        if self._logger.run.stop_requested():
            self._stop("a stop was requested")
        more = self.ending is None and not self._queue.complete
        paused = more and self._logger.run.pause_requested()
        if paused != self._paused:
            self._paused = paused
            kind, message = ("paused", "finishing the steps in flight") if paused else ("resumed", "training continues")
            if more:  # a run that ends in a pause does not continue
                self._logger.notice(kind, self._recorder.progress.step, message)

    async def _wait_while_paused(self) -> None:
        """Wait a moment for a pause to end; the time does not count in tokens per second."""
        self._logger.activity("paused", f"paused after step {self._recorder.progress.step}")
        began = time.monotonic()
        try:
            await asyncio.sleep(_PAUSE_POLL_SECONDS)
        except asyncio.CancelledError:
            self._interrupt()
        self._recorder.rested(time.monotonic() - began)

    def _interrupt(self) -> None:
        """Ask for a stop at the first interrupt; let the second go through."""
        task = asyncio.current_task()
        if self._interrupted or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        self._interrupted = True
        self._interrupts.rearm()
        self._stop("the run was interrupted")

    def _stop(self, reason: str) -> None:
        if self.ending is None:
            self.ending = ("stopped", reason)
            message = f"{reason}: finishing the steps in flight, then saving"
            self._logger.notice("stopping", self._recorder.progress.step, message)
            self._logger.activity("stopping", message)  # which must not wait for the service's next answer

    def _end_early(self) -> None:
        stopper = self._recorder.stopper
        reason = (
            f"{stopper.evals_without_improvement} evaluations without an improvement of more than "
            f"{stopper.threshold:g} nats per token; the best was {stopper.best:.4f} after step {stopper.best_step}"
        )
        self._cut(self._recorder.progress.step, "early_stopped", reason)

    def _cut(self, step: int, status: Status, reason: str) -> None:
        """End the run at `step`; what was submitted beyond it will be discarded. Only the first cut counts."""
        if self._last_step is None:
            self.ending, self._last_step = (status, reason), step

    async def _finish(self) -> TrainingResult:
        recorder = self._recorder
        status, reason = self.ending = self.ending or ("completed", "all epochs are done")
        self._logger.activity("finishing", "waiting for samples, and for superseded checkpoints to be removed")
        recorder.record_window()
        recorder.record_refused()
        if status == "early_stopped":
            recorder.record_early_stop()
        recorder.publish()
        await self._tidy()
        self._logger.end(status, "; ".join(filter(None, (reason, recorder.harm))), recorder.progress.step)
        return TrainingResult.from_state(self._logger.run.path, self._logger.state)

    async def _tidy(self) -> None:
        """Wait a little for samples, and for what was asked of checkpoints; an interrupt skips it."""
        try:
            await self._generations.drain(self._last_step, _TIDY_SECONDS)
            with contextlib.suppress(ServiceError):
                self._service.check_alive()
                await self._cleanup.settle(_TIDY_SECONDS)  # what is being removed need not be removed again
                # Once more: what a killed attempt had queued may have been saved since.
                kept = needed(self._logger.state)
                looking = as_answer(in_background(lambda: self._cleanup.sweep(kept), "the lists of checkpoints"))
                await asyncio.wait([looking], timeout=_TIDY_SECONDS)
            left = await self._cleanup.settle(_TIDY_SECONDS)
            await self._look_at_best()
        except asyncio.CancelledError:
            self._interrupt()
            return
        step = self._recorder.progress.step
        if left:
            self._logger.notice(
                "warning", step,
                f"{left} superseded checkpoints could not be removed from the service, or could not be set to expire",
            )  # fmt: skip
        if self._cleanup.left:
            self._logger.notice(
                "warning", step,
                f"{self._cleanup.left} checkpoints of earlier attempts stay on the service, since a copy of this "
                "directory may need them; `tinker checkpoint list` shows them, `tinker checkpoint delete` removes them",
            )  # fmt: skip

    async def _look_at_best(self) -> None:
        """Say so if the best checkpoint has been damaged since it was saved: the run ends with it."""
        best = self._logger.state.best_checkpoint
        if not best:
            return
        looking = as_answer(in_background(lambda: self._service.check_checkpoint(best), "the best checkpoint"))
        await asyncio.wait([looking], timeout=_TIDY_SECONDS)
        error = looking.exception() if looking.done() else None
        if isinstance(error, CheckpointGoneError):
            self._logger.notice("warning", self._recorder.progress.step, str(error))
