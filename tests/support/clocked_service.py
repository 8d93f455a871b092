"""A service that works in cycles, as the hosted one does: a relay that holds results back until a clock has ticked.

The embedded service behind it computes at once. What is played here is when its results may be known: at each tick the
clock takes one unit of work from a model's queue, and one tick later its results are there. A unit is a batch's pass
with the optimizer step behind it, if that has arrived in time, or the evaluations that stand in a row; saves ride along
with what they stand behind. A tick that finds the queue empty is an idle cycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from support.relay import Message, Relay, reply

from tinker_utils.local.protocol.tensors import parse_forward_backward

Kind = Literal["pass", "step", "evaluation", "save"]
_KINDS: dict[str, Kind] = {
    "optim_step": "step",
    "save_weights": "save",
    "save_weights_for_sampler": "save",
}
_POLL_SECONDS = 20.0
_MOMENTS = 40


@dataclass
class _Request:
    """A request in the queue."""

    kind: Kind
    done: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)


class ClockedService(Relay):
    """Counts the cycles of a run.

    Args:
        target: the service that computes.
        cycle_s: seconds from tick to tick.
        round_trip_s: how long each exchange takes on top, half of it on either way.

    Attributes:
        cycles: cycles from the first that had work to the last that had, idle ones included.
        idle: those between them that found nothing to do.
        steps: optimizer steps executed.
    """

    def __init__(self, target: str, cycle_s: float, round_trip_s: float = 0.0) -> None:
        super().__init__(target)
        self._cycle_s, self._way_s = cycle_s, round_trip_s / 2
        self._queue: deque[_Request] = deque()
        self._requests: dict[str, _Request] = {}
        self.cycles = self.idle = self.steps = 0
        self._idle_since_work = 0
        self._ticking = False

    async def answer(self, request: Message) -> Message | None:
        """The reply, after the round trip, and for a result not before its cycle is over."""
        if not self._ticking:
            self._ticking = True
            self._tasks.add(asyncio.create_task(self._tick_on()))
        await asyncio.sleep(self._way_s)
        if request.endpoint == "retrieve_future":
            answered = await self._result(request)
        else:
            answered = await self.forward(request)
            self._enqueue(request, answered)
        await asyncio.sleep(self._way_s)
        return answered

    async def _result(self, poll: Message) -> Message:
        asked = self._requests.get(json.loads(poll.body)["request_id"])
        if asked is not None:
            try:
                await asyncio.wait_for(asked.done.wait(), _POLL_SECONDS)
            except TimeoutError:
                return reply(408, b'{"type": "try_again", "request_id": "", "queue_state": "active"}')
        answered = await self.forward(poll)
        if asked is not None and answered.status == 200:
            asked.fetched.set()
        return answered

    def _enqueue(self, request: Message, answered: Message) -> None:
        if request.endpoint == "forward_backward":
            kind: Kind = "evaluation" if parse_forward_backward(request.body).forward_only else "pass"
        elif request.endpoint in _KINDS:
            kind = _KINDS[request.endpoint]
        else:
            return
        request_id = json.loads(answered.body)["request_id"]
        if request_id not in self._requests:
            self._requests[request_id] = _Request(kind)
            self._queue.append(self._requests[request_id])

    async def _tick_on(self) -> None:
        running: list[_Request] = []
        while True:
            await self._cycle()
            for request in running:
                request.done.set()
            finished, running = running, self._next_unit()
            self._count(running)
            # On a busy machine the computation, and the polls of the SDK, may take longer than a cycle. That is no
            # fault of the loop that is measured, and stretches the cycle.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(r.fetched.wait() for r in finished)), _POLL_SECONDS)

    async def _cycle(self) -> None:
        """Wait for a cycle, in moments: on a machine too busy to keep to each of them, the clock slows down, too."""
        for _ in range(_MOMENTS):
            await asyncio.sleep(self._cycle_s / _MOMENTS)

    def _next_unit(self) -> list[_Request]:
        unit = [self._queue.popleft()] if self._queue else []
        while self._queue and self._belongs(self._queue[0].kind, {request.kind for request in unit}):
            unit.append(self._queue.popleft())
        return unit

    @staticmethod
    def _belongs(kind: Kind, to: set[Kind]) -> bool:
        if kind == "save":
            return True
        if kind == "step":
            return "pass" in to and "step" not in to
        return kind == "evaluation" and "evaluation" in to

    def _count(self, unit: list[_Request]) -> None:
        if not unit:
            self._idle_since_work += self.cycles > 0
            return
        self.cycles += 1 + self._idle_since_work
        self.idle += self._idle_since_work
        self._idle_since_work = 0
        self.steps += sum(request.kind == "step" for request in unit)
