"""Records a run's answers: counters, train and val records, the best checkpoint, the point to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy

import numpy as np

from tinker_utils.batching import Batch
from tinker_utils.early_stopping import Decision
from tinker_utils.loss import disagreement
from tinker_utils.plan.cautions import about_size
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.validation import Look
from tinker_utils.run import figures
from tinker_utils.run.best import WORSE
from tinker_utils.run.evaluations import Evaluation, PastEvaluations
from tinker_utils.run.logger import RunLogger
from tinker_utils.run.spending import Spending
from tinker_utils.run.state import (
    Checkpoint,
    FollowingStep,
    ResumePoint,
    Roles,
    SourceWindow,
    Spent,
    Standing,
    StoppingState,
)
from tinker_utils.service.model import BatchLoss
from tinker_utils.training.replay import Replay
from tinker_utils.training.resuming import resume_points, stopper_at

# A service's own sum of losses may differ from ours by rounding; by more, it weights the tokens in another way.
_TOLERATED_DISAGREEMENT = 1e-3
# Checkpoints that a run can be resumed from, should the latest ones have expired: run.json holds the state at each.
_POINTS_KEPT = 8
# Steps behind a checkpoint whose losses are kept, to be compared with when they are run again.
_FOLLOWING_KEPT = 3


class Recorder:
    """Records a run from its latest resume point on, in its logger.

    Args:
        plan: the run as planned.
        logger: where to write; its state holds the points that the run could be resumed from so far.
        spending: what was sent to the service. Unlike the progress, it never goes back to a checkpoint.
    """

    def __init__(self, plan: Plan, logger: RunLogger, spending: Spending) -> None:
        point = resume_points(logger.state)[0]
        self.logger = logger
        self.progress = deepcopy(point.progress)
        if self.progress.eval_tokens and not self.progress.evaluations:
            # Older versions did not count them; each was of their only validation set as a whole.
            self.progress.evaluations = self.progress.eval_tokens // sum(each.tokens for each in plan.sets.values())
        self.stopper = stopper_at(point, plan.config)
        self._past = PastEvaluations(logger.run.evaluations)
        self._spending = spending
        self._plan = plan
        self._warned: set[str] = set()  # what was said once
        # Whether it was told how well the validation set can judge.
        self._sized = self.progress.evaluations > plan.config.eval_at_start
        self._refused_before = len(plan.batches.refused)  # of which preflight tells
        self._window_began = time.monotonic() - self.progress.window_seconds
        self._replay = Replay(point.following)
        self._saved_here: ResumePoint | None = None

    def trained(self, step: int, batch: Batch, loss: BatchLoss, of_service: dict[str, float], log: bool) -> None:
        """Count a step; with `log`, write a train record of the steps since the last one.

        `of_service` are figures that the service gives of the optimizer; they go into the record.
        """
        progress = self.progress
        progress.step = step
        progress.tokens += batch.tokens
        progress.completion_tokens += batch.completion_tokens
        progress.window_nll += loss.total
        progress.window_tokens += batch.tokens
        progress.window_completion_tokens += batch.completion_tokens
        self._count_sources(batch, loss)
        self._cross_check(step, loss)
        if math.isfinite(loss.total) and batch.completion_tokens:
            self._prove(step, loss.total / batch.completion_tokens, batch.completion_tokens)
        if log:
            self.record_window(of_service)

    def _count_sources(self, batch: Batch, loss: BatchLoss) -> None:
        """Add a step to the losses of the sources that its batch is from, where there are several."""
        if len(self._plan.sources) < 2 or loss.totals is None:
            return
        for source, example, total in zip(batch.sources, batch.data, loss.totals, strict=True):
            window = self.progress.window_sources.setdefault(self._plan.sources[source], SourceWindow())
            window.nll += total
            window.completion_tokens += example.completion_tokens

    def _prove(self, step: int, loss: float, completion_tokens: int) -> None:
        """Say what a resume has lost, as this step shows; or keep its loss, for a resume from the checkpoint before."""
        now = FollowingStep(step, loss, self._plan.learning_rate(step))
        if lost := self._replay.compare(now, completion_tokens):
            self.logger.notice("warning", step, lost)
        if self._saved_here and len(self._saved_here.following) < _FOLLOWING_KEPT:
            self._saved_here.following.append(now)
            self.publish()

    def skipped(self, step: int) -> None:
        """Count a step whose batch is skipped; its window is logged as if the batch were trained on."""
        self.progress.step = step
        self.progress.skipped_steps += 1
        config = self._plan.config
        if step % config.log_interval_steps == 0 or step == self._plan.total_steps:
            self.record_window()

    def _cross_check(self, step: int, loss: BatchLoss) -> None:
        """Say, once, that the service's own sum is not ours: it weights tokens in another way than is documented."""
        apart = 0.0 if loss.reported is None else disagreement(loss.total, loss.reported)
        # A sum that is NaN beside logprobs that are not is no less apart.
        if math.isfinite(loss.total) and not apart <= _TOLERATED_DISAGREEMENT:
            self._warn_once(
                "loss:sum", step,
                f"the service's loss:sum is {loss.reported:.6g} nats, but its logprobs give {loss.total:.6g}; "
                "the logprobs are used, but the service's gradients may be scaled differently, too.",
            )  # fmt: skip

    def _warn_once(self, about: str, step: int, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self.logger.notice("warning", step, message)

    def record_window(self, of_service: dict[str, float] | None = None) -> None:
        """Write a train record of the steps since the last one, if there are any."""
        progress, now = self.progress, time.monotonic()
        if not progress.window_completion_tokens:
            return
        window = figures.Window(
            progress,
            epoch=self._plan.batches.epoch_of(progress.step),
            seconds=now - self._window_began,
            learning_rate=self._plan.learning_rate(progress.step),
            cost_usd=self._plan.cost_usd(progress.tokens, progress.eval_tokens, progress.evaluations),
        )
        own = figures.fields_of(window) | figures.of_sources(progress.window_sources)
        extra = {key.partition(":")[0]: value for key, value in (of_service or {}).items()}
        self.logger.record("train", progress.step, **own, **{k: v for k, v in extra.items() if k not in own})
        progress.window_nll, progress.window_tokens, progress.window_completion_tokens = 0.0, 0, 0
        progress.window_sources = {}
        self._window_began = now
        if refused := self._plan.batches.refused[self._refused_before :]:
            self._warn_once("refused", progress.step, f"{refused[0]} The line is skipped, and so is each of its kind.")

    def record_refused(self) -> None:
        """Say how many lines could not be used, if that was not known before they were rendered."""
        if len(refused := self._plan.batches.refused) > self._refused_before:
            message = f"{len(refused):,} lines were skipped, as they cannot be used; the last: {refused[-1]}"
            self.logger.notice("warning", self.progress.step, message)

    def rested(self, seconds: float) -> None:
        """Leave a pause out of the tokens per second."""
        self._window_began += seconds

    def evaluated(self, step: int, losses: Sequence[BatchLoss]) -> Decision:
        """Write a val record of each validation set, and say what the evaluation means."""
        looks, left = self._plan.looks(step), list(losses)
        self.progress.eval_tokens += sum(look.tokens for look in looks)
        self.progress.evaluations += 1
        for loss in losses:
            self._cross_check(step, loss)
        decision = Decision(is_best=False, improved=False, stop=False)
        for look in looks:
            own, left = left[: len(look.batches)], left[len(look.batches) :]
            evaluation = _evaluation(look, own)
            about = self._plan.batches.epoch_of(step), len(own), evaluation.pooled, self._bits_per_byte(look, own)
            if look.watched:
                best, difference = self.best, self._past.difference(self.stopper.best_step, evaluation)
                decision = self._decide(step, evaluation)
                record = figures.fields_of(figures.Compared(*about, best, difference, decision.is_best))
            else:
                record = figures.fields_of(figures.Evaluated(*about))
            self.logger.record("val", step, **({"set": look.set} if look.set else {}), **record)
            if look.watched:
                self._judge_size(step, look, evaluation)
        return decision

    def _bits_per_byte(self, look: Look, losses: Sequence[BatchLoss]) -> float | None:
        """Return bits for each byte of the text; None where the service gives no logprobs, or there is no text."""
        nats = [loss.of_text for loss in losses if loss.of_text is not None]
        size = self._plan.text_bytes(look) if len(nats) == len(losses) else 0
        return sum(nats) / math.log(2) / size if size else None

    def _judge_size(self, step: int, look: Look, evaluation: Evaluation) -> None:
        """Say, once, that the validation set is too small to judge by, as its first evaluation shows.

        Not that of the base model: what it cannot do yet has errors of another size.
        """
        if self._sized or step == 0:
            return
        self._sized = True
        examples = len(look.examples)
        of_more = examples < len(self._plan.sets[look.set].examples)
        if sentence := about_size(examples, evaluation.pooled, self.stopper.threshold, of_more):
            self._warn_once("size", step, f"validation{f', {look.set}' if look.set else ''}: {sentence}")

    def _decide(self, step: int, evaluation: Evaluation) -> Decision:
        """Return whether the evaluation is the best and an improvement; if so, later ones are compared with it.

        That of the base model is neither: there is no checkpoint to go back to, and patience has not begun.
        """
        stopper = self.stopper
        if step == 0:
            self.progress.start_val_loss = _finite(evaluation.pooled.loss)
            return Decision(is_best=False, improved=False, stop=False)
        difference = self._past.difference(stopper.anchor_step, evaluation)
        error = None if difference is None else difference.stderr
        if stopper.significance and math.isfinite(stopper.anchor) and error is None:
            self._warn_once(
                "significance", step,
                "training.early_stopping_significance cannot be applied, because the losses of single examples are not "
                "known; only training.early_stopping_threshold decides.",
            )  # fmt: skip
        decision = stopper.update(evaluation.pooled.loss, step, error)
        if decision.is_best or decision.improved:
            self._past.keep(step, evaluation)
        return decision

    def saved(self, step: int, path: str) -> list[Checkpoint]:
        """Make a checkpoint the point to resume from; returns those that are neither best nor latest any more."""
        state = self.logger.state
        before = resume_points(state)[0].checkpoints
        checkpoint = Checkpoint(step, path, periodic=self._plan.checkpoints(step))
        is_best = self.stopper.best_step == step
        kind = "best" if is_best else "periodic" if checkpoint.periodic else "latest"
        self.logger.record("checkpoint", step, path=path, kind=kind)
        self.progress.window_seconds = time.monotonic() - self._window_began
        stopping = StoppingState(**self.stopper.state_dict())
        now = Roles(checkpoint if is_best else before.best, checkpoint)
        point = self._saved_here = ResumePoint(path, deepcopy(self.progress), stopping, now)
        state.periodic_checkpoints = [each for each in (*state.periodic_checkpoints, checkpoint) if each.periodic]
        kept = {each.path for each in (now.best, *state.periodic_checkpoints) if each}
        points = [*(each for each in state.resume_points if each.path in kept), point]
        state.resume_points = points[-_POINTS_KEPT:]
        self.logger.sync()
        self.publish()
        # Only now: until then run.json names points that may need the others.
        stoppings = [each.early_stopping for each in state.resume_points]
        self._past.keep_only({step for each in stoppings for step in (each.best_step, each.anchor_step)})
        return [old for old in dict.fromkeys([before.best, before.latest]) if old and old not in (now.best, now.latest)]

    def discarded(self, tokens: int) -> None:
        """Count a step of so many tokens that was trained beyond the run's last one."""
        self.progress.discarded_steps += 1
        self.progress.discarded_tokens += tokens

    def record_early_stop(self) -> None:
        """Write the record of a run that stopped for want of improvement."""
        several = {"monitor": f"val_loss/{self._plan.watched}"} if self._plan.watched else {}
        self.logger.record(
            "early_stop",
            self.progress.step,
            **several,
            best_val_loss=self.best,
            evals_without_improvement=self.stopper.evals_without_improvement,
            best_step=self.stopper.best_step,
        )

    @property
    def best(self) -> float | None:
        """Return the lowest validation loss so far, in nats per completion token."""
        return self.stopper.best if self.stopper.best_step is not None else None

    @property
    def harm(self) -> str:
        """Return that training made the model worse, in words; empty where it did not, or where that is not known."""
        start = self.progress.start_val_loss
        if start is None or self.best is None or start >= self.best:
            return ""
        return (
            f"{WORSE}: the validation loss was {start:.4f} before the first step, and at best "
            f"{self.best:.4f} after step {self.stopper.best_step}"
        )

    def publish(self) -> None:
        """Bring run.json up to the counters of now."""
        progress = self.progress
        spent = Spent(*self._spending.all)
        standing = Standing(
            step=progress.step,
            epoch=self._plan.batches.epoch_of(progress.step),
            tokens_seen=progress.tokens,
            completion_tokens_seen=progress.completion_tokens,
            discarded_steps=progress.discarded_steps,
            discarded_tokens=progress.discarded_tokens,
            skipped_steps=progress.skipped_steps,
            cost_usd=self._plan.cost_usd(*self._spending.all),
            best_step=self.stopper.best_step,
            best_val_loss=self.best,
            start_val_loss=progress.start_val_loss,
            evals_without_improvement=self.stopper.evals_without_improvement,
        )
        now = resume_points(self.logger.state)[0].checkpoints
        result = now.best or now.latest  # the latest where nothing was evaluated
        self.logger.publish(progress=standing, best_checkpoint=result.path if result else None, spent=spent)


def _evaluation(look: Look, losses: Sequence[BatchLoss]) -> Evaluation:
    """Return an evaluation conversation by conversation, also where one is several examples."""
    weights = np.array([example.completion_tokens for example in look.examples])
    totals = np.array([total for loss in losses for total in loss.totals or ()])
    known = len(totals) == len(weights) > 0
    by_conversation = tuple(np.bincount(look.conversation_of, totals).tolist()) if known else None
    tokens = tuple(np.bincount(look.conversation_of, weights).astype(int).tolist())
    return Evaluation(sum(loss.total for loss in losses), by_conversation, tokens)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
