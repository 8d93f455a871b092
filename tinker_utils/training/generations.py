"""Samples at each evaluation, if asked for: submitted in line, written down when it arrives."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import asdict

from tinker_utils.plan.cost import SAMPLED_TOKENS
from tinker_utils.plan.plan import Plan
from tinker_utils.run.logger import RunLogger
from tinker_utils.service.failures import service_error
from tinker_utils.service.model import Model, Submitted
from tinker_utils.service.sampling import as_samples
from tinker_utils.training.waiting import as_answer


class Generations:
    """Generations of a run, whose failure never ends it."""

    def __init__(self, plan: Plan, logger: RunLogger, model: Model) -> None:
        self._plan = plan
        self._logger = logger
        self._model = model
        self._pending: deque[tuple[int, Submitted[list[list[int]]]]] = deque()
        self._failed: set[int] = set()

    def submit(self, step: int) -> None:
        """Ask for the samples of step `step`, at the weights that what was submitted so far leads to."""
        if prompts := self._plan.sample_prompts:
            stop = self._plan.renderer.stops
            self._pending.append((step, self._model.submit_samples(prompts, SAMPLED_TOKENS, stop)))

    def record(self, last_step: int | None) -> None:
        """Write what has arrived; samples of steps after `last_step` are no part of the run, and are dropped."""
        while self._pending and self._pending[0][1].futures[0].done():
            step, submitted = self._pending.popleft()
            error = submitted.futures[0].exception()
            if last_step is not None and step > last_step:
                continue
            if error is not None:
                self._logger.notice("warning", step, str(service_error("sampling", error)))
                self._failed.add(step)
            else:
                samples = as_samples(self._plan.sampled, submitted.result(), self._plan.tokenizer)
                self._logger.samples(step, map(asdict, samples))

    async def drain(self, last_step: int | None, timeout_s: float, until: float = math.inf) -> bool:
        """Wait a little for what is in flight of steps up to `until`, and write it.

        Returns:
            Whether all of it came; of what failed, this is said once.
        """
        late: set[asyncio.Future[list[list[int]]]] = set()
        waiting = [as_answer(submitted.futures[0]) for step, submitted in self._pending if step <= until]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            self.record(last_step)
        failed = {step for step in self._failed if step <= until}
        self._failed -= failed
        return not late and not failed
