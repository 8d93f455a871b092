"""A small stand-in for the project's own `Model` and `Service`, which answers when a test tells it to.

Every loss is one nat for each completion token, unless the test gives another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tinker_utils.batching import Batch
from tinker_utils.service.model import BatchLoss


def loss_of(batch: Batch, per_token: float = 1.0) -> BatchLoss:
    """Return a loss of so many nats for each completion token."""
    totals = tuple(per_token * example.completion_tokens for example in batch.data)
    return BatchLoss(totals, sum(totals), None)


@dataclass
class Request:
    """A request that was submitted: what it is, and what it will come to."""

    kind: str
    outcome: Callable[[], Any]
    batches: tuple[Batch, ...] = ()
    name: str = ""
    future: Future[Any] = field(default_factory=Future)

    @property
    def futures(self) -> tuple[Future[Any], ...]:
        return (self.future,)

    def result(self) -> Any:
        return self.future.result(timeout=0)


class SmallModel:
    """A model whose requests are `submitted`, in order, and answered one by one with `answer`.

    Args:
        figures: the optimizer's own figures, in each step's answer.
        step_loss, val_loss: nats for each completion token of the nth step and of the nth evaluation, from 0.
        prompt: answers at once to whatever is submitted.
    """

    run_id = "small"

    def __init__(
        self,
        figures: dict[str, float] | None = None,
        step_loss: Callable[[int], float] = lambda step: 1.0,
        val_loss: Callable[[int], float] = lambda evaluation: 1.0,
        prompt: bool = False,
    ) -> None:
        self.submitted: list[Request] = []
        self.pending: deque[Request] = deque()
        self._figures, self._step_loss, self._val_loss, self._prompt = figures or {}, step_loss, val_loss, prompt

    @property
    def kinds(self) -> list[str]:
        """Return what was submitted, in order."""
        return [request.kind for request in self.submitted]

    def answer(self, requests: int = 1) -> None:
        """Answer the first of those that are not answered yet."""
        for _ in range(requests):
            request = self.pending.popleft()
            request.future.set_result(request.outcome())

    def submit_step(self, batch: Batch, learning_rate: float, weight_decay: float, grad_clip_norm: float) -> Request:
        per_token = self._step_loss(self.kinds.count("step"))
        return self._submit(Request("step", lambda: (loss_of(batch, per_token), dict(self._figures)), (batch,)))

    def submit_evaluation(self, batches: Sequence[Batch], special_ids: Any = None) -> Request:
        per_token = self._val_loss(self.kinds.count("evaluation"))
        losses = [loss_of(batch, per_token) for batch in batches]
        return self._submit(Request("evaluation", lambda: losses, tuple(batches)))

    def submit_save(self, name: str) -> Request:
        return self._submit(Request("save", lambda: f"tinker://small/weights/{name}", name=name))

    def _submit(self, request: Request) -> Request:
        self.submitted.append(request)
        self.pending.append(request)
        if self._prompt:
            self.answer()
        return request


class QuietWatch:
    """The watch of a service of which no trouble is known, until a test sets some."""

    def __init__(self) -> None:
        self.known: str | None = None

    def trouble(self) -> str | None:
        return self.known

    def probe(self) -> None:
        pass


class SmallService:
    """A service that is at hand, keeps a list of what was deleted, and can be told to have ended."""

    def __init__(self) -> None:
        self.watch = QuietWatch()
        self.deleted: list[str] = []
        self.ended: Exception | None = None

    def check_alive(self) -> None:
        if self.ended is not None:
            raise self.ended

    def checkpoints_of(self, run_id: str) -> list[tuple[str, bool]]:
        return []

    def delete_checkpoint(self, path: str) -> Future[None]:
        self.deleted.append(path)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def expire_checkpoint(self, path: str, ttl_seconds: int | None) -> Future[None]:
        return self.delete_checkpoint(f"{path} expires")
