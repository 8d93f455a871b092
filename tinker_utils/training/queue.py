"""The requests in flight: submits what a run does next, and hands out what is answered next.

Requests of one model run in the order of their submission. Behind each step stand, in line, the evaluation and the save
that are due after it; the next steps wait behind these, so that the service never waits for the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinker_utils.batching import Batch, in_batches
from tinker_utils.plan.plan import Plan
from tinker_utils.run.spending import Spending
from tinker_utils.service.model import Model, Submitted
from tinker_utils.training.generations import Generations

# Examples in one request of an evaluation: few requests, as each takes a round trip before the next can be sent; and
# each far below the protocol's 1,024 examples.
_EVALUATED_TOGETHER = 256

Kind = Literal["step", "skipped step", "evaluation", "save"]
_WORDS: dict[Kind, str] = {
    "step": "the answer to step",
    "skipped step": "step",
    "evaluation": "the evaluation after step",
    "save": "the checkpoint after step",
}
# A step whose batch is skipped has its place in the queue, and nothing is waited for.
_NOTHING: Submitted[None] = Submitted((), lambda: None)


@dataclass(frozen=True)
class Work:
    """A request in flight, the step whose weights it is about, and the batches that went along."""

    kind: Kind
    step: int
    request: Submitted[Any]
    batches: Sequence[Batch] = ()

    @property
    def tokens(self) -> int:
        """Return the tokens that the model reads for it."""
        return sum(batch.tokens for batch in self.batches)

    @property
    def words(self) -> str:
        """Return what is waited for, in words."""
        return f"{_WORDS[self.kind]} {self.step}"


class RequestQueue:
    """Submits a run's steps in their order, and keeps what is in flight: first in, first out.

    Args:
        plan: what to train on and when to look and save.
        model: where to submit.
        generations: asked for what the model writes at each evaluation.
        spending: where what is sent is written down, and what the budget is compared with.
        step: the last step that the model has been trained on.
    """

    def __init__(self, plan: Plan, model: Model, generations: Generations, spending: Spending, step: int) -> None:
        self.generations = generations
        self._plan = plan
        self._model = model
        self._spending = spending
        self._submitted = self._saved = step
        self._works: deque[Work] = deque()
        valid = plan.valid
        self._valid_batches = tuple(in_batches(valid.examples, _EVALUATED_TOGETHER)) if valid else ()
        self._eval_tokens = sum(batch.tokens for batch in self._valid_batches)

    @property
    def complete(self) -> bool:
        """Return whether all steps of the run were submitted."""
        return self._submitted >= self._plan.total_steps

    @property
    def first(self) -> Work | None:
        """Return what is answered next; None if nothing is in flight."""
        return self._works[0] if self._works else None

    def answered(self) -> None:
        """Note that the first request was answered."""
        self._works.popleft()

    def fill(self) -> str | None:
        """Submit as many steps as should be in flight; returns why no further one may be, once that is so."""
        while not self.complete and sum(work.kind == "step" for work in self._works) < self._plan.config.in_flight:
            step, budget = self._submitted + 1, self._plan.config.budget_usd
            if budget is not None:
                tokens = self._spending.tokens + self._plan.batches.batch(step).tokens
                eval_tokens = self._spending.eval_tokens + (self._eval_tokens if self._plan.evaluates(step) else 0)
                if (self._plan.cost_usd(tokens, eval_tokens) or 0.0) > budget:
                    return f"the next step would exceed training.budget_usd = ${budget:g}"
            self._submit(step)
        return None

    def save_last(self) -> None:
        """Submit a save of the last step submitted, unless there is one."""
        if self._saved < self._submitted:
            self._submit_save(self._submitted)

    def cancel_all(self) -> None:
        """Cancel what is in flight, the last first, so that nothing is sent for which what came before is missing."""
        for work in reversed(self._works):
            for future in work.request.futures:
                future.cancel()

    def _submit(self, step: int) -> None:
        self._submitted = step
        evaluates = self._plan.evaluates(step)
        if step in self._plan.batches.skipped:
            self._works.append(Work("skipped step", step, _NOTHING))
        else:
            config, batch = self._plan.config, self._plan.batches.batch(step)
            self._spending.sent(step, batch.tokens)
            rate = self._plan.learning_rate(step)
            trained = self._model.submit_step(batch, rate, config.weight_decay, config.grad_clip_norm)
            self._works.append(Work("step", step, trained, (batch,)))
        if evaluates:
            self._spending.sent(step, 0, self._eval_tokens)
            request = self._model.submit_evaluation(self._valid_batches)
            self._works.append(Work("evaluation", step, request, self._valid_batches))
        if evaluates or self._plan.checkpoints(step):
            self._submit_save(step)
        if evaluates:
            self.generations.submit(step)

    def _submit_save(self, step: int) -> None:
        self._saved = step
        self._works.append(Work("save", step, self._model.submit_save(f"step-{step:06d}")))
