"""The training loop: batches queued ahead, evaluations and saves in line, stopped in time.

Requests of one model run in the order of their submission. So an evaluation submitted after a step sees exactly that
step's weights, and a save submitted after the evaluation holds them, while the next steps already wait in the service's
queue. Answers are taken in the same order; what was still on its way when an evaluation ended the run is discarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

from tinker_utils.answer_times import AnswerTimes
from tinker_utils.background import in_background
from tinker_utils.bookkeeping import Bookkeeper
from tinker_utils.errors import RunDirectoryError, ServiceError
from tinker_utils.evaluation_samples import EvaluationSamples
from tinker_utils.interrupts import Interrupts
from tinker_utils.journal import Journal
from tinker_utils.model import Model, SubmittedEvaluation, SubmittedSave, SubmittedStep
from tinker_utils.pipeline import LeftOutStep, Pipeline, Work
from tinker_utils.preparation import Preparation
from tinker_utils.result import Status, TrainingResult
from tinker_utils.retention import Retention, needed
from tinker_utils.rundir import RunDirectory
from tinker_utils.service import Service
from tinker_utils.spending import Spending
from tinker_utils.submission import Submission
from tinker_utils.waiting import Waiting

# The most steps on their way at once. The embedded service is a loopback away, where one step waiting behind the one
# that runs is enough, and a stop takes effect sooner.
_MOST_STEPS, _MOST_STEPS_LOCAL = 8, 2
_PAUSE_POLL_SECONDS = 0.2
# Batches left out in a row, after which the run stops all the same.
_LEFT_OUT_IN_A_ROW = 3
_NOT_FINITE = (
    "the loss or the gradient of step {step} is not a finite number: lower training.learning_rate, set "
    "training.grad_clip_norm, or leave such batches out with training.on_nonfinite: skip"
)
_NO_NUMBER = (
    "the evaluation after step {step} gives no number, so the weights are spoiled: lower training.learning_rate, set "
    "training.grad_clip_norm, or leave such batches out with training.on_nonfinite: skip"
)
_TIDY_SECONDS = 30
# What an embedded server that was killed takes to be seen as ended, after its connections have broken.
_ENDING_SECONDS = 0.5


class SpoiledStepError(Exception):
    """A step's loss or gradient was not a finite number, and the weights since are not to be used."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step}")
        self.step = step


class TrainingLoop:
    """One run's loop, from where the books stand to its end. `run` is all there is to call, once.

    Args:
        run: the directory, for its control files.
        preparation: what to train on and when to look and save.
        journal: where to say what is going on.
        books: where the answers go.
        service: for noticing that it has ended.
        model: the model, in the state that belongs to the books.
        retention: where checkpoints go that are needed no more.
        spending: where what is sent is written down.
        left_out: steps whose batches are not trained on.
    """

    def __init__(
        self,
        run: RunDirectory,
        preparation: Preparation,
        journal: Journal,
        books: Bookkeeper,
        service: Service,
        model: Model,
        retention: Retention,
        spending: Spending,
        left_out: frozenset[int] = frozenset(),
    ) -> None:
        self._run = run
        self._preparation = preparation
        self._config = preparation.config
        self._journal = journal
        self._books = books
        self._left_out = left_out

        self._samples = EvaluationSamples(preparation, journal, model)
        self._waiting = Waiting(journal, service, self._config.service_timeout_s, self._interrupt)
        self._answer_times = AnswerTimes()

        self._pipeline = Pipeline(_MOST_STEPS_LOCAL if self._config.service == "local" else _MOST_STEPS)
        self._submission = Submission(
            preparation, model, self._pipeline, self._samples, books.progress.step, spending, left_out
        )
        self._service = service
        self._retention = retention
        # Why no further step is to be submitted, once that is so, and the last step that counts, where not all do.
        self._ending: tuple[Status, str] | None = None
        self._last_step: int | None = None
        self._paused = self._interrupted = False
        self._interrupts = Interrupts()

    async def run(self) -> TrainingResult:
        """Train to the end, whatever ends it.

        Raises:
            ServiceError: the service gave up on a request, or answered what cannot be used.
            SpoiledStepError: a loss or gradient was not finite, and its batch may be left out.
        """
        try:
            with self._interrupts:
                return await self._train()
        except BaseException:
            self._abandon()
            raise

    async def _train(self) -> TrainingResult:
        if self._books.stopper.exhausted:
            self._end_early()
        while True:
            self._heed_requests()
            self._submit_ahead()
            if work := self._pipeline.first:
                await self._take(work)
            elif self._paused:
                await self._wait_while_paused()
            else:
                return await self._finish()

    @property
    def ending(self) -> bool:
        """Whether no further step is to be submitted, because of a wish or of what was learned."""
        return self._ending is not None

    def _submit_ahead(self) -> None:
        if not self._paused and self._ending is None and (reason := self._submission.fill()):
            self._ending = ("stopped", reason)
        if (self._ending is not None or self._submission.complete) and self._last_step is None:
            self._submission.save_last()

    # Taking answers

    async def _take(self, work: Work) -> None:
        """Wait for an answer and act on it."""
        self._journal.activity(*self._doing(work))
        answers = [asyncio.wrap_future(future) for future in work.request.futures]
        overdue_after = self._answer_times.overdue_after(work.tokens)
        seconds = await self._waiting.until(answers, work.step, work.what, overdue_after)
        self._pipeline.answered()
        if isinstance(work.request, SubmittedStep):
            self._answer_times.took(seconds, work.tokens)
        else:
            self._books.rested(seconds)
        if self._last_step is not None and work.step > self._last_step:
            self._discard(work)
        elif isinstance(work.request, SubmittedStep):
            self._trained(work.step, work.request)
        elif isinstance(work.request, LeftOutStep):
            self._books.left_out(work.step)
        elif isinstance(work.request, SubmittedEvaluation):
            self._evaluated(work.step, work.request)
        else:
            await self._samples_written(work.step)
            self._has_saved(work.step, work.request.result())
        self._samples.record(self._last_step)

    def _doing(self, work: Work) -> tuple[str, str]:
        if self._ending is not None:
            return "stopping", f"finishing what is on its way: {self._ending[1]}"
        if isinstance(work.request, SubmittedEvaluation):
            return "evaluating", f"evaluating after step {work.step}"
        return "training", "training"

    def _trained(self, step: int, request: SubmittedStep) -> None:
        loss, figures = request.result()
        finite = math.isfinite(loss.total) and all(math.isfinite(value) for value in figures.values())
        if not finite and self._may_leave_out(step):
            self._books.discarded(request.batch.tokens)
            raise SpoiledStepError(step)
        due = step % self._config.log_interval_steps == 0 or step == self._preparation.total_steps
        self._books.trained(step, request.batch, loss, figures, log=due or not finite)
        if not finite:
            # The step's own evaluation and save, already on their way, are of spoiled weights and must not count.
            self._cut(step - 1, "failed", _NOT_FINITE.format(step=step))

    def _may_leave_out(self, step: int) -> bool:
        """Whether a batch may be left out; when the ones before it were, it is not the batches that are at fault."""
        too_many = self._left_out.issuperset(range(step - _LEFT_OUT_IN_A_ROW, step))
        return self._config.on_nonfinite == "skip" and not self.ending and not too_many

    def _evaluated(self, step: int, request: SubmittedEvaluation) -> None:
        losses = request.result()
        # NaN comes of spoiled weights, also where no step has shown it: the save behind it must not count. Infinity
        # may be one token that the model holds for impossible.
        spoiled = any(math.isnan(loss.total) for loss in losses)
        if spoiled and self._may_leave_out(step):
            raise SpoiledStepError(step)
        decision = self._books.evaluated(step, request.batches, losses)
        if spoiled:
            self._cut(step - 1, "failed", _NO_NUMBER.format(step=step))
        elif decision.stop:
            self._end_early()

    def _has_saved(self, step: int, path: str) -> None:
        self._retention.release(self._books.saved(step, path))

    async def _samples_written(self, step: int) -> None:
        """Samples of earlier weights cannot be asked for again: they are written before a resume would pass them."""
        try:
            for _ in range(_TIDY_SECONDS):
                if await self._samples.drain(self._last_step, 1 - _ENDING_SECONDS, until=step):
                    break
                # Where they do not come because the service has ended, the resumed run asks for them again.
                await asyncio.sleep(_ENDING_SECONDS)
                self._service.check_alive()
        except asyncio.CancelledError:
            self._interrupt()

    def _abandon(self) -> None:
        """Take back what is on its way, the last first; it counts as spent all the same."""
        self._pipeline.take_back()
        with contextlib.suppress(RunDirectoryError):
            self._books.publish()

    def _discard(self, work: Work) -> None:
        """Count what was trained beyond the run's last step, and keep nothing of it."""
        if isinstance(work.request, SubmittedStep):
            self._books.discarded(work.tokens)
        elif isinstance(work.request, SubmittedSave):
            self._retention.remove(work.request.result())

    # Pausing, stopping, ending

    def _heed_requests(self) -> None:
        if self._run.stop_requested():
            self._stop("a stop was asked for")
        more = self._ending is None and not self._submission.complete
        paused = more and self._run.pause_requested()
        if paused != self._paused:
            self._paused = paused
            kind, message = (
                ("paused", "finishing the steps on their way") if paused else ("resumed", "training goes on")
            )
            self._journal.record("notice", self._books.progress.step, kind=kind, message=message)

    async def _wait_while_paused(self) -> None:
        """Wait a moment for a pause to end; the time does not count in tokens per second."""
        self._journal.activity("paused", f"paused after step {self._books.progress.step}")
        began = time.monotonic()
        try:
            await asyncio.sleep(_PAUSE_POLL_SECONDS)
        except asyncio.CancelledError:
            self._interrupt()
        self._books.rested(time.monotonic() - began)

    def _interrupt(self) -> None:
        """The first interrupt asks for a stop; the second goes through."""
        task = asyncio.current_task()
        if self._interrupted or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        self._interrupted = True
        self._interrupts.rearm()
        self._stop("it was interrupted")

    def _stop(self, reason: str) -> None:
        if self._ending is None:
            self._ending = ("stopped", reason)
            message = f"{reason}: finishing the steps on their way, then saving"
            self._journal.record("notice", self._books.progress.step, kind="stopping", message=message)
            self._journal.activity("stopping", message)  # which must not wait for the service's next answer

    def _end_early(self) -> None:
        stopper = self._books.stopper
        reason = (
            f"{stopper.evals_without_improvement} evaluations without an improvement of more than "
            f"{stopper.threshold:g} nats per token; the best was {stopper.best:.4f} after step {stopper.best_step}"
        )
        self._cut(self._books.progress.step, "early_stopped", reason)

    def _cut(self, step: int, status: Status, reason: str) -> None:
        """End the run at `step`; what was submitted beyond it will be discarded. Only the first cut counts."""
        if self._last_step is None:
            self._ending, self._last_step = (status, reason), step

    async def _finish(self) -> TrainingResult:
        books = self._books
        status, reason = self._ending or ("completed", "all epochs are done")
        books.record_window()
        if status == "early_stopped":
            books.record_early_stop()
        await self._tidy()
        books.publish()
        best = {"best_step": books.stopper.best_step, "best_val_loss": books.best}
        self._journal.end(status, reason, books.progress.step, **best)
        return TrainingResult.from_state(self._run, self._journal.state)

    async def _tidy(self) -> None:
        """Wait a little for samples, and for what was asked of checkpoints; an interrupt skips it."""
        try:
            await self._samples.drain(self._last_step, _TIDY_SECONDS)
            with contextlib.suppress(ServiceError):
                self._service.check_alive()
                await self._sweep()
            left = await self._retention.settle(_TIDY_SECONDS)
        except asyncio.CancelledError:
            self._interrupt()
            return
        if left:
            message = f"{left} superseded checkpoints could not be removed from the service, or not be let expire"
            self._journal.record("notice", self._books.progress.step, kind="warning", message=message)

    async def _sweep(self) -> None:
        """Once more at the end: what an attempt that was killed had queued may have been saved since."""
        kept = needed(self._journal.state.get("models", []), self._books.named)
        looking = asyncio.wrap_future(in_background(lambda: self._retention.sweep(kept), "the lists of checkpoints"))
        await asyncio.wait([looking], timeout=_TIDY_SECONDS)
