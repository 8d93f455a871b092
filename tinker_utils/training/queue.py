"""Submits what a run does next: steps, and in line behind each the evaluation and the save that are due then."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tinker_utils.batching import in_batches
from tinker_utils.plan.plan import Plan
from tinker_utils.run.spending import Spending
from tinker_utils.service.model import Model, SubmittedEvaluation, SubmittedSave, SubmittedStep
from tinker_utils.training.generations import Generations
from tinker_utils.training.queue_depth import QueueDepth

# Examples in one request of an evaluation: few requests, as each takes a round trip before the next can be sent; and
# each far below the protocol's 1,024 examples.
_EVALUATED_TOGETHER = 256


@dataclass(frozen=True)
class SkippedStep:
    """A step whose batch is not trained on: there is nothing to wait for."""

    futures: tuple[Future[Any], ...] = ()


@dataclass(frozen=True)
class Work:
    """A request in flight, and the step whose weights it is about."""

    step: int
    request: SubmittedStep | SkippedStep | SubmittedEvaluation | SubmittedSave
    tokens: int = 0
    submitted: float = field(default_factory=time.monotonic)

    @property
    def is_step(self) -> bool:
        """Return whether it is an optimizer step, which changes the weights."""
        return isinstance(self.request, SubmittedStep)

    @property
    def what(self) -> str:
        """Return what is waited for, in words."""
        if self.is_step:
            return f"the answer to step {self.step}"
        kind = "evaluation" if isinstance(self.request, SubmittedEvaluation) else "checkpoint"
        return f"the {kind} after step {self.step}"


class RequestQueue:
    """The requests in flight, in the order of their submission, and how many of them may be steps.

    Args:
        max_steps: the most steps to keep in flight; how many there are depends on what the link needs.
    """

    def __init__(self, max_steps: int) -> None:
        self._depth = QueueDepth(max_steps)
        self._works: deque[Work] = deque()

    def add(self, work: Work) -> None:
        """Note that a request was submitted."""
        self._works.append(work)

    @property
    def first(self) -> Work | None:
        """Return what is answered next; None if nothing is in flight."""
        return self._works[0] if self._works else None

    @property
    def has_room(self) -> bool:
        """Return whether a further step should be submitted, so that the service does not wait for it."""
        return sum(work.is_step for work in self._works) < self._depth.depth

    def answered(self) -> None:
        """Note that the first request was answered."""
        work = self._works.popleft()
        if work.is_step:
            self._depth.answered(work.submitted, time.monotonic())
        else:
            self._depth.disturbed()

    def cancel_all(self) -> list[Work]:
        """Cancel everything, the last first, so that nothing is sent any more for which what came before is missing."""
        works = list(self._works)
        for work in reversed(works):
            for future in work.request.futures:
                future.cancel()
        return works


class Submission:
    """Submits a run's steps in their order.

    Args:
        plan: what to train on and when to look and save.
        model: where to submit.
        queue: where what was submitted goes.
        samples: asked for what the model writes at each evaluation.
        step: the last step that the model has been trained on.
        spending: where what is sent is written down, and what the budget is compared with.
        skipped: steps whose batches are not trained on.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        queue: RequestQueue,
        samples: Generations,
        step: int,
        spending: Spending,
        skipped: frozenset[int],
    ) -> None:
        self._plan = plan
        self._config = plan.config
        self._model = model
        self._queue = queue
        self._samples = samples
        self._submitted = self._saved = step
        self._spending = spending
        self._skipped = skipped
        valid = plan.valid
        self._valid_batches = tuple(in_batches(valid.examples, _EVALUATED_TOGETHER)) if valid else ()
        self._eval_tokens = sum(batch.tokens for batch in self._valid_batches)

    @property
    def complete(self) -> bool:
        """Return whether all steps of the run were submitted."""
        return self._submitted >= self._plan.total_steps

    def fill(self) -> str | None:
        """Submit as many steps as should be in flight; returns why no further one may be, once that is so."""
        while self._queue.has_room and not self.complete:
            budget = self._config.budget_usd
            if budget is not None and (self._cost_with_next_step() or 0.0) > budget:
                return f"the next step would pass training.budget_usd = ${budget:g}"
            self._submit(self._submitted + 1)
        return None

    def save_last(self) -> None:
        """Submit a save of the last step submitted, unless there is one."""
        if self._saved < self._submitted:
            self._save(self._submitted)

    def _cost_with_next_step(self) -> float | None:
        step = self._submitted + 1
        evaluated = self._eval_tokens if self._plan.evaluates(step) else 0
        trained = self._plan.batches.batch(step).tokens
        spent = self._spending
        return self._plan.cost_usd(spent.tokens + trained, spent.eval_tokens + evaluated)

    def _submit(self, step: int) -> None:
        self._submitted = step
        self._train(step)
        evaluates = self._plan.evaluates(step)
        if evaluates:
            self._spending.sent(step, 0, self._eval_tokens)
            self._queue.add(Work(step, self._model.submit_evaluation(self._valid_batches), self._eval_tokens))
        if evaluates or self._plan.checkpoints(step):
            self._save(step)
        if evaluates:
            self._samples.submit(step)

    def _train(self, step: int) -> None:
        if step in self._skipped:
            self._queue.add(Work(step, SkippedStep()))
            return
        batch, rate = self._plan.batches.batch(step), self._plan.learning_rate(step)
        self._spending.sent(step, batch.tokens)
        submitted = self._model.submit_step(batch, rate, self._config.weight_decay, self._config.grad_clip_norm)
        self._queue.add(Work(step, submitted, batch.tokens))

    def _save(self, step: int) -> None:
        save = self._model.submit_save(f"step-{step:06d}")
        self._queue.add(Work(step, save))
        self._saved = step
