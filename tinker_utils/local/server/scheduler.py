"""From submission to result: requests run one at a time on one thread, in order within a lane, fairly between lanes.

A *lane* is a model's (or a sampling session's) line of requests. `Lanes` lives on the event loop and puts requests in
the order of their sequence numbers; `Worker` has the one thread that computes. A result is kept until it has been
retrieved, and some time beyond, because a reply may be lost in flight and asked for again.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.local.protocol.errors import RequestError

JSON = "application/json"
PROTOBUF = "application/x-protobuf"

RETRIEVED_RESULTS_KEPT = 512
RETRIEVED_BYTES_KEPT = 64 * 1024 * 1024
MAX_AHEAD = 1 << 16
"""A request may arrive so far ahead of its turn: it is held in memory until those before it have come."""

GAP_LIMIT_S = 300.0
"""A request waits so long for an earlier sequence number that has not arrived, and then fails."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The outcome of a request, ready to be sent."""

    body: bytes
    content_type: str = PROTOBUF

    @classmethod
    def json(cls, data: dict[str, Any]) -> Result:
        """Return a result in JSON, which knows neither NaN nor infinity (ValueError)."""
        return cls(json.dumps(data, allow_nan=False).encode(), JSON)

    @classmethod
    def failure(cls, message: str, category: str) -> Result:
        """Return the result of a failed request; `category` is "user" or "server"."""
        return cls.json({"error": message, "category": category})


Job = Callable[[], Result]


@dataclass(eq=False)
class PendingRequest:
    """One request: its result is set once, on the event loop."""

    request_id: str
    done: asyncio.Event = field(default_factory=asyncio.Event)
    result: Result | None = None
    held_since: float | None = None

    def finish(self, result: Result) -> None:
        """Set the result, unless the request was given up before."""
        if self.result is None:
            self.result = result
            self.done.set()


class Worker:
    """Computes on one thread. Lanes take turns, so that a client with a long queue does not shut out another."""

    def __init__(self) -> None:
        self._lanes: collections.OrderedDict[str, collections.deque[tuple[Job, Callable[[Result], None]]]]
        self._lanes = collections.OrderedDict()
        self._changed = threading.Condition()
        self._ended = False

    @classmethod
    def started(cls) -> Self:
        """Return a worker that computes on a thread of its own."""
        worker = cls()
        threading.Thread(target=worker.run, name="compute", daemon=True).start()
        return worker

    def submit(self, lane: str, job: Job, finished: Callable[[Result], None]) -> None:
        """Run the job after the earlier ones of its lane; `finished` is called on the compute thread."""
        with self._changed:
            self._lanes.setdefault(lane, collections.deque()).append((job, finished))
            self._changed.notify()

    def drop(self, lane: str) -> None:
        """Forget what a lane has not begun yet."""
        with self._changed:
            self._lanes.pop(lane, None)

    def queued(self) -> list[str]:
        """Return the lanes that have work that has not begun."""
        with self._changed:
            return list(self._lanes)

    def run(self) -> None:
        """Compute on this thread until `end` is called."""
        while entry := self._next():
            job, finished = entry
            finished(run(job))

    def end(self) -> None:
        """Let `run` return after the job that it is at."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _next(self) -> tuple[Job, Callable[[Result], None]] | None:
        with self._changed:
            while not self._lanes and not self._ended:
                self._changed.wait()
            if self._ended:
                return None
            lane, jobs = self._lanes.popitem(last=False)
            entry = jobs.popleft()
            if jobs:
                self._lanes[lane] = jobs
            return entry


def run(job: Job) -> Result:
    """Return the job's result, or the failure that it ended with: nothing that a request does may end the thread."""
    try:
        return job()
    except RequestError as error:
        return Result.failure(str(error), "user")
    except Exception as error:
        logger.exception("A request failed.")
        message = one_sentence(f"The embedded service failed with {type(error).__name__}: {error}")
        return Result.failure(message, "server")


@dataclass
class _Lane:
    next: int
    ordered: bool
    requests: dict[int, PendingRequest] = field(default_factory=dict)
    held: dict[int, Job] = field(default_factory=dict)


class Lanes:
    """The requests of every model and sampling session; used on the event loop only."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lanes: dict[str, _Lane] = {}
        self._requests: dict[str, PendingRequest] = {}
        self._retrieved: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._retrieved_bytes = 0

    def open(self, lane_id: str, first: int = 0, ordered: bool = True) -> None:
        """Begin a lane whose sequence numbers start at `first`."""
        self._lanes[lane_id] = _Lane(first, ordered)

    def close(self, lane_id: str, reason: str) -> None:
        """Forget a lane and its results; whoever still waits for one is told why."""
        self._worker.drop(lane_id)
        lane = self._lanes.pop(lane_id, None)
        for request in lane.requests.values() if lane else ():
            request.finish(Result.failure(reason, "server"))
            self._requests.pop(request.request_id, None)

    def knows(self, lane_id: str, sequence: int) -> bool:
        """Return whether a request with this number has been taken in."""
        lane = self._lanes[lane_id]
        return sequence in lane.requests or (lane.ordered and sequence < lane.next)

    def submit(self, lane_id: str, sequence: int, job: Job) -> str:
        """Take in a request, and return its id. A repeated sequence number is the same request: it runs only once."""
        lane = self._lanes[lane_id]
        request_id = f"{lane_id}:{sequence}"
        if self.knows(lane_id, sequence):
            return request_id
        if lane.ordered and sequence > lane.next + MAX_AHEAD:
            raise RequestError(f"seq_id is {sequence}, but the next one of this model is {lane.next}.")
        request = PendingRequest(request_id)
        lane.requests[sequence] = self._requests[request_id] = request
        if lane.ordered:
            request.held_since = time.monotonic()
            lane.held[sequence] = job
            self._release(lane_id, lane)
        else:
            self._start(lane_id, request, job)
        return request_id

    def skip(self, lane_id: str, sequence: int, reason: str) -> None:
        """Fill a sequence number whose request was refused, so that the ones behind it do not wait for it."""
        if lane_id in self._lanes:
            with contextlib.suppress(RequestError):
                self.submit(lane_id, sequence, lambda: Result.failure(reason, "user"))

    async def retrieve(self, request_id: str, timeout_s: float) -> Result | None:
        """Return the result, None if there is none after the timeout; raise a `RequestError` (404) on an unknown id."""
        request = self._requests.get(request_id)
        if request is None:
            raise RequestError(
                f"The request {request_id[:120]} is unknown to this service: the service was restarted, the session "
                "ended, the client was silent for too long, or its result was retrieved long ago.",
                404,
            )
        self._fail_if_stuck(request)
        try:
            await asyncio.wait_for(request.done.wait(), timeout_s)
        except TimeoutError:
            return None
        assert request.result is not None
        self._mark_retrieved(request_id, len(request.result.body))
        return request.result

    def _release(self, lane_id: str, lane: _Lane) -> None:
        while lane.next in lane.held or (lane.next in lane.requests and lane.requests[lane.next].result is not None):
            job = lane.held.pop(lane.next, None)
            if job is not None:
                self._start(lane_id, lane.requests[lane.next], job)
            lane.next += 1

    def _start(self, lane_id: str, request: PendingRequest, job: Job) -> None:
        loop = asyncio.get_running_loop()
        request.held_since = None

        def finished(result: Result) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended, and nobody waits for the answer
                loop.call_soon_threadsafe(request.finish, result)

        self._worker.submit(lane_id, job, finished)

    def _fail_if_stuck(self, request: PendingRequest) -> None:
        if request.held_since is None or time.monotonic() - request.held_since < GAP_LIMIT_S:
            return
        lane_id, _, sequence = request.request_id.rpartition(":")
        lane = self._lanes[lane_id]
        lane.held.pop(int(sequence), None)
        request.finish(
            Result.failure(f"The request waited {GAP_LIMIT_S:.0f} s for request {lane.next}, which never came.", "user")
        )

    def _mark_retrieved(self, request_id: str, size: int) -> None:
        if request_id not in self._retrieved:
            self._retrieved[request_id] = size
            self._retrieved_bytes += size
        while len(self._retrieved) > 1 and (
            len(self._retrieved) > RETRIEVED_RESULTS_KEPT or self._retrieved_bytes > RETRIEVED_BYTES_KEPT
        ):
            oldest, size = self._retrieved.popitem(last=False)
            self._retrieved_bytes -= size
            self._forget(oldest)

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        lane_id, _, sequence = request_id.rpartition(":")
        lane = self._lanes.get(lane_id)
        if lane is not None:
            lane.requests.pop(int(sequence), None)
