"""Trains from the latest checkpoint that is left, and goes back to it when a run cannot go on from where it is.

That is so when the service has lost a result for good, for then nobody knows what the weights are; and when a loss was
not finite and its batch is to be skipped, for then the weights are spoiled. The model is made anew from the
checkpoint, and what was trained since is trained again: never twice on the same weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tinker_utils.errors import CheckpointGoneError, ResultLostError, ResumeError, ServiceGoneError
from tinker_utils.plan.plan import Plan
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.spending import Spending
from tinker_utils.run.state import ResumePoint, RunState, TrainingResult
from tinker_utils.service.client import Service
from tinker_utils.service.model import Model
from tinker_utils.training.checkpoint_cleanup import CheckpointCleanup, Kept, needed, set_aside
from tinker_utils.training.generations import Generations
from tinker_utils.training.loop import SpoiledStepError, TrainingLoop
from tinker_utils.training.queue import RequestQueue
from tinker_utils.training.recorder import Recorder
from tinker_utils.training.resuming import resume_points, without_lost_best
from tinker_utils.training.waiting import Waiting

# How often to go back to one and the same checkpoint for a lost result: what happens again and again will not go away.
_MAX_RETURNS = 3


class Recovery:
    """A run's attempts to reach its end; `train` is all there is to call, once.

    Args:
        plan: what to train on.
        logger: where to say what is going on; its state holds the resume points.
        service: where to train.
        spending: where what is sent is written down.
    """

    def __init__(self, plan: Plan, logger: RunLogger, service: Service, spending: Spending) -> None:
        self._run = logger.run
        self._plan = _skipping(plan, logger.state.skipped_steps)
        self._logger = logger
        self._service = service
        self._spending = spending
        shared = service.store != logger.run.local_store
        self._cleanup = CheckpointCleanup(service, plan.config.checkpoint_ttl_seconds, shared)
        self._waiting = Waiting(logger, service, plan.config.service_timeout_s, _abort)
        self._returned_to: str | None = None
        self._returns = 0
        self._returning_since = 0.0

    async def train(self, notices: Sequence[tuple[str, str]]) -> TrainingResult:
        """Train to the end; `notices` is what to say first: kinds of notices, and their messages.

        Raises:
            ServiceError: the service gave up on a request; or it lost results again and again.
            ResumeError: none of the run's checkpoints is left.
        """
        while True:
            loop: TrainingLoop | None = None
            try:
                loop = await self._loop(notices)
                return await loop.run()
            except ResultLostError as lost:
                if loop is None and not self._returns:
                    raise  # nothing has been trained yet, and whoever began it is there to hear
                step = self._go_back()
                if self._in_vain(lost) or (loop is not None and loop.ending is not None):
                    raise
                notices = [("warning", f"{lost} The run went back to step {step} automatically.")]
                if isinstance(lost, ServiceGoneError):
                    await self._waiting.call(self._service.wait_until_reachable, step, "the service")
                self._service.renew()  # what lost the result may be that the session has ended
            except SpoiledStepError as spoiled:
                notices = [("warning", self._skip(spoiled, self._go_back()))]

    async def _loop(self, notices: Sequence[tuple[str, str]]) -> TrainingLoop:
        """Make the loop from the latest point that is left on; the logger then tells one history up to there."""
        logger, state = self._logger, self._logger.state
        latest = resume_points(state)[0].progress.step
        model, point, cautions = await self._waiting.call(
            lambda: _model(self._service, self._plan, state), latest, "the model to be ready"
        )
        self._cleanup.saves_as(model.run_id)
        step = point.progress.step
        if self._plan.config.resume_warmup_steps:
            self._plan = replace(self._plan, resumed_at=step)
        state.resume_points = [each for each in state.resume_points if each.progress.step < step]
        if point.path:
            state.resume_points.append(point)
        state.periodic_checkpoints = [each for each in state.periodic_checkpoints if each.step <= step]
        # In its thread it only asks the service: should that outlast the run, it must not write what is another's then.
        kept = needed(state)
        found = await self._waiting.call(lambda: self._clean_up(kept), step, "the lists of checkpoints")
        # The attempts just before may still be at work on the service, or its disk may have been out of sight for as
        # long as they took: their names are looked at once more.
        before = state.models[-1 - _MAX_RETURNS :]
        logger.publish(models=list(dict.fromkeys([*found, *before, model.run_id])))
        recorder = Recorder(self._plan, logger, self._spending)
        # More may have been sent since the last save than run.json says, and the records that told of it go.
        recorder.publish()
        if not logger.roll_back(point.path or None, step):
            cautions.append(
                f"{self._run.metrics} has no record of the checkpoint after step {step}, from which the "
                "run resumes: its records of earlier steps may be incomplete."
            )
        for kind, message in [*notices, *(("warning", caution) for caution in cautions)]:
            logger.notice(kind, step, message)
        if point.path:
            logger.record("resume", step, path=point.path)
        queue = RequestQueue(self._plan, model, Generations(self._plan, logger, model), self._spending, step)
        return TrainingLoop(self._plan, queue, recorder, self._cleanup, self._service)

    def _clean_up(self, kept: Kept) -> tuple[str, ...]:
        """Remove checkpoints that earlier attempts left; returns the names that are to be looked at again."""
        left = self._cleanup.sweep(kept)
        if not self._cleanup.shared:
            for ended in set_aside(self._run):
                self._cleanup.sweep(ended)
        return left

    def _go_back(self) -> int:
        """Count a return to the latest checkpoint; returns its step."""
        point = resume_points(self._logger.state)[0]
        if not self._returns or self._returned_to != point.path:
            self._returned_to, self._returns, self._returning_since = point.path, 0, time.monotonic()
        self._returns += 1
        return point.progress.step

    def _in_vain(self, lost: ResultLostError) -> bool:
        """Return whether to go back to the same checkpoint no more: too often, or an outage that lasts too long."""
        if not isinstance(lost, ServiceGoneError):
            return self._returns > _MAX_RETURNS
        max_seconds = self._plan.config.service_timeout_s
        return max_seconds is not None and time.monotonic() - self._returning_since > max_seconds

    def _skip(self, spoiled: SpoiledStepError, back_to: int) -> str:
        """Note that a step's batch is not to be trained on, even if the run is killed now."""
        self._plan = _skipping(self._plan, [*self._plan.batches.skipped, spoiled.step])
        self._logger.publish(skipped_steps=sorted(self._plan.batches.skipped))
        return (
            f"{spoiled}: the batch of step {spoiled.step} is skipped, and the run "
            f"went back to step {back_to} to restore finite weights."
        )


def _skipping(plan: Plan, steps: Iterable[int]) -> Plan:
    return replace(plan, batches=replace(plan.batches, skipped=frozenset(steps)))


def _abort() -> None:
    """Cancel: there is nothing to finish before a model is ready."""
    raise asyncio.CancelledError


def _model(service: Service, plan: Plan, state: RunState) -> tuple[Model, ResumePoint, list[str]]:
    """Return the model of the latest checkpoint that is left, or a new one; where it stands; what to say of it.

    Only a checkpoint that the service says it does not have, or not whole, is skipped: any other failure may pass, and
    must not cost the run what it has trained.
    """
    gone: list[CheckpointGoneError] = []
    *saved, start = resume_points(state)
    for point in saved:
        try:
            model = service.restored_model(point.path, plan.config)
        except CheckpointGoneError as error:
            gone.append(error)
            continue
        cautions = [f"{error} The run resumes from the checkpoint before it." for error in gone]
        return model, without_lost_best(point, state) if gone else point, cautions
    if gone:
        raise ResumeError(
            f"none of the run's checkpoints is left on the service: {str(gone[0]).rstrip('.')}; choose another output "
            "directory, or set training.resume_from_checkpoint: false to start a new run."
        )
    return service.new_model(plan.config), start, []
