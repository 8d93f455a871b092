"""A service that misbehaves: a relay that injects faults, and a ledger of every row that was trained on behind it."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from support.relay import Message, Relay, reply

from tinker_utils.local.protocol.tensors import decode_loss_request, messages, parse_forward_backward

Pass = Callable[[], Awaitable[Message]]
Act = Callable[[Pass], Awaitable[Message | None]]
Row = tuple[int, ...]


@dataclass
class Fault:
    """Something that happens to a request.

    Attributes:
        endpoint: which requests it may happen to; "" stands for every one.
        act: what happens. It gets a function that passes the request on, and returns the reply, or None to drop the
            connection.
        skip: so many matching requests go unharmed first.
        times: how often it happens.
        on: a further condition on the request.
        distort: what becomes of the request before the service gets it.
    """

    endpoint: str
    act: Act
    skip: int = 0
    times: int = 1
    on: Callable[[Message], bool] = lambda request: True
    distort: Callable[[Message], Message] = lambda request: request

    def strikes(self, request: Message) -> bool:
        """Return whether it happens to this request, which is counted."""
        if self.times <= 0 or self.endpoint not in ("", request.endpoint) or not self.on(request):
            return False
        self.skip -= 1
        if self.skip >= 0:
            return False
        self.times -= 1
        return True


async def dropped_before(forward: Pass) -> None:
    """The connection breaks before the request reaches the service."""


async def dropped_after(forward: Pass) -> None:
    """The service gets the request, but its reply is lost."""
    await forward()


def refused(status: int, body: bytes = b'{"detail": "injected"}', **headers: str) -> Act:
    """The front end answers instead of the service; `retry_after="1"` becomes a header of that name."""

    async def act(forward: Pass) -> Message:
        return reply(status, body, **{name.replace("_", "-"): value for name, value in headers.items()})

    return act


def late(seconds: float) -> Act:
    """The service's reply comes late."""

    async def act(forward: Pass) -> Message:
        answered = await forward()
        await asyncio.sleep(seconds)
        return answered

    return act


def hanging(seconds: float) -> Act:
    """The request is stuck on its way for so long, and then lost."""

    async def act(forward: Pass) -> None:
        await asyncio.sleep(seconds)

    return act


def paused(reason: str, state: str = "paused_capacity") -> Act:
    """A poll that waits a moment, and is told that the queue is paused."""
    body = {"type": "try_again", "request_id": "", "queue_state": state, "queue_state_reason": reason}

    async def act(forward: Pass) -> Message:
        await asyncio.sleep(0.1)
        return reply(408, json.dumps(body).encode())

    return act


def rewritten(change: Callable[[Any], object]) -> Act:
    """`change` is let loose on what a forward pass returned; other results stay as they are."""

    async def act(forward: Pass) -> Message:
        answered = await forward()
        if "protobuf" not in answered.headers.get("content-type", ""):
            return answered
        output = messages.ForwardBackwardOutput()
        output.ParseFromString(answered.body)
        change(output)
        return answered.with_body(output.SerializeToString())

    return act


def overflowing(request: Message) -> Message:
    """The same batch with weights so large that its loss and its gradient are infinite."""
    batch = parse_forward_backward(request.body)
    for datum in batch.data:
        weights = datum.loss_fn_inputs["weights"]
        weights.dense = np.full(len(weights.dense) // 4, 3e38, "<f4").tobytes()
    return request.with_body(batch.SerializeToString())


async def passed_on(forward: Pass) -> Message:
    """Nothing happens on the way."""
    return await forward()


class FaultyService(Relay):
    """Passes everything on but for its `faults`, the first of which that strikes is the one that happens."""

    def __init__(self, target: str, *faults: Fault) -> None:
        super().__init__(target)
        self.faults = list(faults)
        self.ledger = Ledger()
        self.struck: list[str] = []  # the endpoints that a fault happened to
        self._away_until = 0.0

    def go_away(self, seconds: float) -> None:
        """An outage: for so long every connection is cut, also those that wait for a reply."""
        self._away_until = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self.drop_connections)

    @property
    def away(self) -> bool:
        """Return whether an outage goes on."""
        return time.monotonic() < self._away_until

    async def answer(self, request: Message) -> Message | None:
        """The reply, if no fault gets in the way."""
        if self.away:
            return None

        async def forward(asked: Message = request) -> Message:
            answered = await self.forward(asked)
            self.ledger.note(asked, answered)
            return answered

        for fault in self.faults:
            if fault.strikes(request):
                self.struck.append(request.endpoint)
                return await fault.act(functools.partial(forward, fault.distort(request)))
        return await forward()


def passes(request: Message) -> bool:
    """Return whether a poll asks for the result of a training pass."""
    return request.headers.get("x-tinker-request-type") == "ForwardBackward"


def numbered(*sequence: int) -> Callable[[Message], bool]:
    """Return whether a batch has one of these sequence numbers; a step's pass and its optimizer step have one each."""
    return lambda request: parse_forward_backward(request.body).seq_id in sequence


def about(request_id_ends: str) -> Callable[[Message], bool]:
    """Return whether a poll asks for the result of a request whose id ends so; `:7` is a model's seventh."""
    return lambda request: json.loads(request.body)["request_id"].endswith(request_id_ends)


@dataclass
class _Lineage:
    """A model: what was trained on in it, by sequence number, and the checkpoint that it began with."""

    origin: str | None = None
    rows: dict[int, list[Row]] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)


class Ledger:
    """Every row that reached the service to be trained on, kept by model, and by what each checkpoint holds.

    A request that the client repeats carries the same sequence number, and the service runs it once; so it is one
    entry here.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Lineage] = {}
        self._checkpoints: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def note(self, request: Message, answered: Message) -> None:
        """Write down what the service has accepted."""
        if answered.status != 200:
            return
        with self._lock:
            if request.endpoint == "forward_backward":
                self._note_rows(request.body)
            elif request.endpoint in ("optim_step", "save_weights", "load_weights"):
                self._note_json(request.endpoint, json.loads(request.body), json.loads(answered.body))

    def _note_rows(self, body: bytes) -> None:
        message = parse_forward_backward(body)
        if not message.forward_only:
            rows = [tuple(datum.tokens.tolist()) for datum in decode_loss_request(message).data]
            self._model(message.model_id).rows[message.seq_id] = rows

    def _note_json(self, endpoint: str, asked: dict[str, object], answered: dict[str, object]) -> None:
        model_id, sequence = str(answered["model_id"]), int(asked.get("seq_id") or 0)  # type: ignore[call-overload]
        if endpoint == "load_weights":
            self._model(model_id).origin = str(asked["path"])
        elif endpoint == "optim_step":
            self._model(model_id).steps.add(sequence)
        else:
            self._checkpoints[f"tinker://{model_id}/weights/{asked['path']}"] = (model_id, sequence)

    def _model(self, model_id: str) -> _Lineage:
        return self._models.setdefault(model_id, _Lineage())

    def batches_in(self, checkpoint: str) -> list[list[Row]]:
        """The batches that a checkpoint's weights have been trained on, in order, since the base model."""
        model_id, sequence = self._checkpoints[checkpoint]
        model = self._models[model_id]
        before = self.batches_in(model.origin) if model.origin else []
        return before + [rows for seq, rows in sorted(model.rows.items()) if seq < sequence]

    @property
    def steps(self) -> int:
        """Optimizer steps that the service was asked for, whether they became part of a result or not."""
        return sum(len(model.steps) for model in self._models.values())

    @property
    def tokens(self) -> int:
        """Tokens that the service was asked to train on, in all models."""
        return sum(len(row) for model in self._models.values() for rows in model.rows.values() for row in rows)
