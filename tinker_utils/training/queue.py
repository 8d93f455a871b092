"""The requests in flight: submits what a run does next, and hands out what is answered next.

Requests of one model run in the order of their submission. First stands the evaluation of the base model. Behind each
step stand, in line, the evaluation and the save that are due after it; the next steps wait behind these, so that the
service never waits for the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinker_utils.batching import Batch
from tinker_utils.plan.plan import Plan
from tinker_utils.run.spending import Spending
from tinker_utils.service.model import Model, Submitted
from tinker_utils.training.generations import Generations

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
        self._begins = step == 0  # nothing was submitted yet

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
        if self._begins:
            if self._plan.looks(0) and not self._affordable(0):
                return self._over_budget("evaluating the base model")
            self._submit_evaluation(0)
            self._begins = False
        while not self.complete and sum(work.kind == "step" for work in self._works) < self._plan.config.in_flight:
            if not self._affordable(self._submitted + 1):
                return self._over_budget("the next step")
            self._submit(self._submitted + 1)
        return None

    def _affordable(self, step: int) -> bool:
        """Return whether the budget lasts for a step and the evaluation after it."""
        budget = self._plan.config.budget_usd
        if budget is None:
            return True
        tokens, eval_tokens, evaluations = self._spending.all
        looks = self._plan.looks(step)
        tokens += self._plan.batches.batch(step).tokens if step else 0
        eval_tokens += sum(look.tokens for look in looks)
        return (self._plan.cost_usd(tokens, eval_tokens, evaluations + bool(looks)) or 0.0) <= budget

    def _over_budget(self, what: str) -> str:
        return f"{what} would exceed training.budget_usd = ${self._plan.config.budget_usd:g}"

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
        if step in self._plan.batches.skipped:
            self._works.append(Work("skipped step", step, _NOTHING))
        else:
            config, batch = self._plan.config, self._plan.batches.batch(step)
            self._spending.sent(step, batch.tokens)
            rate = self._plan.learning_rate(step)
            trained = self._model.submit_step(batch, rate, config.weight_decay, config.grad_clip_norm)
            self._works.append(Work("step", step, trained, (batch,)))
        self._submit_evaluation(step)

    def _submit_evaluation(self, step: int) -> None:
        """Submit what is due after a step; of the base model, before the first one, nothing is saved."""
        if looks := self._plan.looks(step):
            batches = tuple(batch for look in looks for batch in look.batches)
            self._spending.sent(step, 0, sum(look.tokens for look in looks))
            request = self._model.submit_evaluation(batches, self._plan.special_ids)
            self._works.append(Work("evaluation", step, request, batches))
        if step and (looks or self._plan.checkpoints(step)):
            self._submit_save(step)
        if looks:
            self.generations.submit(step)

    def _submit_save(self, step: int) -> None:
        self._saved = step
        self._works.append(Work("save", step, self._model.submit_save(f"step-{step:06d}")))
