"""What is queued for a client that is silent, counted in seconds that the server saw pass."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.local_service import MODEL

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.model_source import find
from tinker_utils.local.server.scheduler import Worker
from tinker_utils.local.server.sessions import HEARTBEAT_LIMIT_S, IDLE_LIMIT_S
from tinker_utils.local.store.store import Store


@pytest.fixture
def idle(tmp_path: Path):
    """All behind the endpoints, with a worker that begins nothing: whatever is queued stays queued."""
    served, store = find(MODEL), Store(tmp_path / "store")
    yield Handlers(Engine(Base(served.source, "cpu")), store, served, Worker())
    store.close()


def asked(handlers: Handlers, session: str) -> tuple[str, str]:
    """Ask for a model and for a sample; returns the ids of the requests."""
    making = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    model = handlers.create_model(requests.CreateModelRequest.model_validate(making))
    return model["request_id"], sampled(handlers, session, 1)


def sampled(handlers: Handlers, session: str, number: int) -> str:
    prompt: dict[str, Any] = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    body = {"prompt": prompt, "sampling_params": {"max_tokens": 3}, "sampling_session_id": f"{session}:sample:0"}
    request = requests.SampleRequest.model_validate({**body, "seq_id": number})
    return str(handlers.samplers.sample(request)["request_id"])


async def silence(handlers: Handlers) -> None:
    gone, there = (handlers.sessions.create({}, None) for _ in range(2))
    for session in (gone, there):
        opening = {"session_id": session.session_id, "sampling_session_seq_id": 0, "base_model": MODEL}
        await handlers.samplers.create(requests.CreateSamplingSessionRequest.model_validate(opening), asyncio.to_thread)
    lost = asked(handlers, gone.session_id)
    kept = asked(handlers, there.session_id)
    waiting = [asyncio.create_task(handlers.lanes.retrieve(each, 60)) for each in lost]
    for _ in range(HEARTBEAT_LIMIT_S):
        handlers.tick()
    await asyncio.sleep(0)
    handlers.sessions.open(there.session_id)
    assert not any(task.done() for task in waiting)
    handlers.tick()
    for task in waiting:
        result = await task
        assert result is not None
        assert b"not even a heartbeat" in result.body
        assert b'"category": "server"' in result.body
    for each in kept:
        assert await handlers.lanes.retrieve(each, 0.01) is None
    assert not gone.models
    with pytest.raises(RequestError, match="silent for too long"):
        await handlers.lanes.retrieve(lost[1], 0.01)
    # The client is back: its sampler is what it was, and the same request is a new one.
    assert sampled(handlers, gone.session_id, 1) == lost[1]
    assert await handlers.lanes.retrieve(lost[1], 0.01) is None
    for _ in range(IDLE_LIMIT_S + 1):
        handlers.tick()
    assert gone.finished
    assert there.finished


def test_a_silent_clients_queue_is_dropped_and_another_clients_is_not(idle: Handlers) -> None:
    asyncio.run(silence(idle))
