"""What the embedded server holds in memory: a long run takes no more of it than a short one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fuzz import wire
from fuzz.wire import JSON, PROTOBUF, batch
from support.local_service import MODEL

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.paths import Reference
from tinker_utils.local.server import samplers, scheduler
from tinker_utils.local.server.app import build_app
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.model_source import find
from tinker_utils.local.store.store import Store

# Two threads that wait for each other on a busy machine are slower than one.
torch.set_num_threads(1)

_STRETCH = 15
"""Steps in a stretch."""


class Client:
    """A client with a model, of a server in this process: what that holds can be counted."""

    def __init__(self, http: httpx.AsyncClient, store: Store) -> None:
        self._http = http
        self._store = store
        self._model = ""
        self._sequence = 0

    async def open(self) -> None:
        session = (await self.post("create_session", wire.requests("", "")["create_session"]))["session_id"]
        self._model = f"{session}:train:0"
        body = {**wire.requests(session, self._model)["create_model"], "model_seq_id": 0}
        await self.retrieve((await self.post("create_model", body))["request_id"])

    async def step(self) -> None:
        """An evaluation, a training step, and a checkpoint with a name of its own, which is then deleted."""
        await self.compute(forward_only=True)
        await self.compute(forward_only=False)
        await self.retrieve(await self.ordered("optim_step"))
        saved = await self.retrieve(await self.ordered("save_weights", path=f"step-{self._sequence}"))
        # Not by its address, which the client's own library would remember.
        self._store.delete(Reference.from_path(saved.json()["path"]))

    async def open_sampler(self, number: int) -> None:
        """Save the weights for a new sampler, and draw from it."""
        await self.retrieve(await self.ordered("save_weights_for_sampler", sampling_session_seq_id=number))
        await self.retrieve((await self.draw(number, 0)).json()["request_id"])

    async def sample_base_model(self, number: int) -> None:
        """Open a sampler on the base model, and draw from it."""
        session = self._model.partition(":train:")[0]
        body = {**wire.requests(session, "")["create_sampling_session"], "sampling_session_seq_id": number}
        await self.post("create_sampling_session", body)
        await self.retrieve((await self.draw(number, 0)).json()["request_id"])

    async def draw(self, number: int, sequence: int) -> httpx.Response:
        session = self._model.partition(":train:")[0]
        body = {
            **wire.requests(session, self._model, sequence)["asample"],
            "sampling_session_id": f"{session}:sample:{number}",
        }
        return await self._http.post("/api/v1/asample", json=body)

    async def compute(self, forward_only: bool) -> None:
        self._sequence += 1
        body = batch(self._model, self._sequence, forward_only).SerializeToString()
        await self.retrieve((await self.post("forward_backward", body))["request_id"])

    async def ordered(self, endpoint: str, **fields: Any) -> str:
        """The id of a request, the next one of the model."""
        self._sequence += 1
        body = {**wire.requests("", self._model, self._sequence)[endpoint], **fields}
        return str((await self.post(endpoint, body))["request_id"])

    async def retrieve(self, request_id: str) -> httpx.Response:
        body = {"request_id": request_id}
        while (response := await self._http.post("/api/v1/retrieve_future", json=body)).status_code == 408:
            pass  # ask again
        assert response.status_code == 200
        assert not response.content.startswith(b'{"error"')
        return response

    async def post(self, endpoint: str, body: dict[str, Any] | bytes) -> Any:
        kind = {"content-type": PROTOBUF if isinstance(body, bytes) else JSON}
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        response = await self._http.post(f"/api/v1/{endpoint}", headers=kind, **sent)
        assert response.status_code == 200
        return response.json()


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Client]:
    """A client of a new server."""
    served, store = find(MODEL), Store(folder / "store")
    app = build_app(Handlers(Engine(Base(served.source, "cpu")), store, served), "http://local")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://local") as http:
        opened = Client(http, store)
        await opened.open()
        yield opened
    store.close()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path) as opened:
        yield opened


def test_the_texts_of_a_request_are_not_kept_for_the_next_one() -> None:
    """Whoever keeps a text gives out the same object when it comes again."""
    body = b'{"request_id": "01234567-89ab-cdef-0123-456789abcdef:train:0:1234"}'
    first, second = (requests.decode(requests.FutureRetrieveRequest, body).request_id for _ in range(2))
    assert first == second
    assert first is not second


def test_a_step_an_evaluation_and_a_checkpoint_leave_nothing_behind(tmp_path: Path) -> None:
    """What is kept for good is kept in every stretch; the first ones warm up, and after those little comes and goes.

    A text kept of each request would be two blocks a step.
    """
    grown = _alone("steps", tmp_path)
    assert min(grown) < 1.5 * _STRETCH, grown


async def test_of_samplers_a_session_keeps_those_used_last(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that samples from each step's weights opens one a step, and may go on using an early one."""
    monkeypatch.setattr(samplers, "MAX_SAMPLERS", 3)
    for number in range(3):
        await client.open_sampler(number)
    await client.retrieve((await client.draw(0, 1)).json()["request_id"])
    await client.open_sampler(3)
    answers = [await client.draw(number, 2) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 200]
    for answer in (answers[0], *answers[2:]):
        await client.retrieve(answer.json()["request_id"])


def test_a_sampler_that_made_room_leaves_nothing_behind(tmp_path: Path) -> None:
    """On the base model, because safetensors 0.8.0 never lets go of two numbers for each tensor that it loads."""
    grown = _alone("samplers", tmp_path)
    assert min(grown) < 5 * _STRETCH, grown


def _alone(work: str, folder: Path) -> list[int]:
    """Blocks of Python's memory by which each stretch of some work grew, in a process where nobody else takes any."""
    command = [sys.executable, __file__, work, str(folder)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # `support` and `fuzz` are beside the rooms
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=paths)
    grown: list[int] = json.loads(done.stdout)
    return grown


async def _steps(client: Client, number: int) -> None:
    await client.step()


async def _samplers(client: Client, number: int) -> None:
    await client.sample_base_model(number)


async def _grown(work: Callable[[Client, int], Awaitable[None]], stretches: int, folder: Path) -> list[int]:
    scheduler.RETRIEVED_RESULTS_KEPT, samplers.MAX_SAMPLERS = 12, 3
    blocks = []
    async with serving(folder) as client:
        for stretch in range(stretches):
            for number in range(_STRETCH):
                await work(client, stretch * _STRETCH + number)
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    return [after - before for before, after in itertools.pairwise(blocks)]


if __name__ == "__main__":
    # Five or six stretches of steps warm up.
    chosen, stretches = {"steps": (_steps, 10), "samplers": (_samplers, 6)}[sys.argv[1]]
    print(json.dumps(asyncio.run(_grown(chosen, stretches, Path(sys.argv[2])))))
