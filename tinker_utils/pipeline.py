"""The requests on their way to the service, in the order of their submission, and how many of them may be steps."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tinker_utils.model import SubmittedEvaluation, SubmittedSave, SubmittedStep
from tinker_utils.queue_depth import QueueDepth


@dataclass(frozen=True)
class LeftOutStep:
    """A step whose batch is not trained on: there is nothing to wait for."""

    futures: tuple[Future[Any], ...] = ()


@dataclass(frozen=True)
class Work:
    """A request on its way, and the step whose weights it is about."""

    step: int
    request: SubmittedStep | LeftOutStep | SubmittedEvaluation | SubmittedSave
    tokens: int = 0
    submitted: float = field(default_factory=time.monotonic)

    @property
    def is_step(self) -> bool:
        """Whether it is an optimizer step, which changes the weights."""
        return isinstance(self.request, SubmittedStep)

    @property
    def what(self) -> str:
        """What is waited for, in words."""
        if self.is_step:
            return f"the answer to step {self.step}"
        kind = "evaluation" if isinstance(self.request, SubmittedEvaluation) else "checkpoint"
        return f"the {kind} after step {self.step}"


class Pipeline:
    """First in, first out.

    Args:
        most_steps: the most steps to keep on their way; how many it are depends on what the link needs.
    """

    def __init__(self, most_steps: int) -> None:
        self._depth = QueueDepth(most_steps)
        self._works: deque[Work] = deque()

    def add(self, work: Work) -> None:
        """A request was submitted."""
        self._works.append(work)

    @property
    def first(self) -> Work | None:
        """What is answered next; None if nothing is on its way."""
        return self._works[0] if self._works else None

    @property
    def has_room(self) -> bool:
        """Whether a further step should be submitted, so that the service does not wait for it."""
        return sum(work.is_step for work in self._works) < self._depth.depth

    def answered(self) -> None:
        """The first request was answered."""
        work = self._works.popleft()
        if work.is_step:
            self._depth.answered(work.submitted, time.monotonic())
        else:
            self._depth.disturbed()

    def take_back(self) -> list[Work]:
        """Cancel everything, the last first, so that nothing is sent any more for which what came before is missing."""
        works = list(self._works)
        for work in reversed(works):
            for future in work.request.futures:
                future.cancel()
        return works
