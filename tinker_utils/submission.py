"""Submits what a run does next: steps, and in line behind each the evaluation and the save that are due then."""

from __future__ import annotations

from tinker_utils.batching import in_batches
from tinker_utils.evaluation_samples import EvaluationSamples
from tinker_utils.model import Model
from tinker_utils.pipeline import LeftOutStep, Pipeline, Work
from tinker_utils.preparation import Preparation
from tinker_utils.spending import Spending

# Examples in one request of an evaluation: few requests, as each takes a round trip before the next can be sent; and
# each far below the protocol's 1,024 examples.
_EVALUATED_TOGETHER = 256


class Submission:
    """Submits a run's steps in their order.

    Args:
        preparation: what to train on and when to look and save.
        model: where to submit.
        pipeline: where what was submitted goes.
        samples: asked for what the model writes at each evaluation.
        step: the last step that the model has been trained on.
        spending: where what is sent is written down, and what the budget is compared with.
        left_out: steps whose batches are not trained on.
    """

    def __init__(
        self,
        preparation: Preparation,
        model: Model,
        pipeline: Pipeline,
        samples: EvaluationSamples,
        step: int,
        spending: Spending,
        left_out: frozenset[int],
    ) -> None:
        self._preparation = preparation
        self._config = preparation.config
        self._model = model
        self._pipeline = pipeline
        self._samples = samples
        self._submitted = self._saved = step
        self._spending = spending
        self._left_out = left_out
        valid = preparation.valid
        self._valid_batches = tuple(in_batches(valid.examples, _EVALUATED_TOGETHER)) if valid else ()
        self._eval_tokens = sum(batch.tokens for batch in self._valid_batches)

    @property
    def complete(self) -> bool:
        """Whether all steps of the run were submitted."""
        return self._submitted >= self._preparation.total_steps

    def fill(self) -> str | None:
        """Submit as many steps as should be on their way; returns why no further one may be, once that is so."""
        while self._pipeline.has_room and not self.complete:
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
        evaluated = self._eval_tokens if self._preparation.evaluates(step) else 0
        trained = self._preparation.plan.batch(step).tokens
        spent = self._spending
        return self._preparation.cost_usd(spent.tokens + trained, spent.eval_tokens + evaluated)

    def _submit(self, step: int) -> None:
        self._submitted = step
        self._train(step)
        evaluates = self._preparation.evaluates(step)
        if evaluates:
            self._spending.sent(step, 0, self._eval_tokens)
            self._pipeline.add(Work(step, self._model.submit_evaluation(self._valid_batches), self._eval_tokens))
        if evaluates or self._preparation.checkpoints(step):
            self._save(step)
        if evaluates:
            self._samples.submit(step)

    def _train(self, step: int) -> None:
        if step in self._left_out:
            self._pipeline.add(Work(step, LeftOutStep()))
            return
        batch, rate = self._preparation.plan.batch(step), self._preparation.learning_rate(step)
        self._spending.sent(step, batch.tokens)
        submitted = self._model.submit_step(batch, rate, self._config.weight_decay, self._config.grad_clip_norm)
        self._pipeline.add(Work(step, submitted, batch.tokens))

    def _save(self, step: int) -> None:
        save = self._model.submit_save(f"step-{step:06d}")
        self._pipeline.add(Work(step, save))
        self._saved = step
