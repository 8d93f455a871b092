"""The embedded server's wire: requests that are wrong somewhere, against the real application in this process.

A case is one request as bytes: a line with method, path and content type, then the body. Ids of a session that exists
are written as `SESSION`, and the next sequence number as `SEQUENCE`, so that a case gets as far as it can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.protocol.tensors import messages
from tinker_utils.local.server import app
from tinker_utils.local.server.app import build_app
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.model_source import PACKAGED_NAME, find
from tinker_utils.local.server.security import Guard
from tinker_utils.local.store.store import Store

JSON, PROTOBUF = "application/json", "application/x-protobuf"
SESSION, SEQUENCE = "00000000-0000-4000-8000-000000000000", 77_777
_PORT, _KEY = 4711, "tml-the-key-of-the-fuzzer"
# A context that is filled in no time: a request may ask for as many tokens as the context holds.
_CONTEXT = 48
_REQUESTS_A_SESSION = 50
_SENTENCE = 1100


def requests(session: str, model: str, sequence: int = 1) -> dict[str, dict[str, Any]]:
    """A valid body for each endpoint that takes JSON."""
    ordered = {"model_id": model, "seq_id": sequence}
    return {
        "client/config": {"sdk_version": "0.38.0"},
        "create_session": {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"},
        "session_heartbeat": {"session_id": session},
        "create_model": {
            "session_id": session, "model_seq_id": 3, "base_model": PACKAGED_NAME, "lora_config": {"rank": 2},
            "user_metadata": {"lora_alpha": "32", "lora_dropout": "0.5", "lora_target_modules": "q_proj,v_proj"},
        },
        "get_info": {"model_id": model},
        "optim_step": {**ordered, "adam_params": {"learning_rate": 0.1, "grad_clip_norm": 1.0, "eps": 1e-8}},
        "save_weights": {**ordered, "path": "fuzz", "ttl_seconds": 3600, "overwrite": True},
        "save_weights_for_sampler": {**ordered, "sampling_session_seq_id": 1},
        "save_weights_external": {**ordered, "path": "fuzz"},
        "load_weights": {**ordered, "path": f"tinker://{model}/weights/fuzz", "optimizer": True},
        "create_sampling_session": {
            "session_id": session, "sampling_session_seq_id": 2, "base_model": PACKAGED_NAME,
        },
        "join_sampling_session": {"sampling_session_id": f"{session}:sample:2"},
        "asample": {
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
            "sampling_params": {
                "max_tokens": 1, "stop": ["x"], "temperature": 1.0, "top_p": 1.0, "top_k": 1, "seed": 1,
            },
            "sampling_session_id": f"{session}:sample:2",
            "seq_id": sequence,
            "num_samples": 1,
        },
        "retrieve_future": {"request_id": f"{model}:0"},
        "weights_info": {"tinker_path": f"tinker://{model}/weights/fuzz"},
    }  # fmt: skip


def batch(model: str, sequence: int, forward_only: bool = False) -> Any:
    """A valid ForwardBackwardRequest of two rows."""
    message = messages.ForwardBackwardRequest(
        model_id=model, seq_id=sequence, loss_fn="cross_entropy", forward_only=forward_only
    )
    for length in (3, 5):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.arange(length, dtype="<i4").tobytes()
        for name, values, dtype in (
            ("target_tokens", np.arange(length, dtype="<i8"), messages.DTYPE_INT64),
            ("weights", np.ones(length, "<f4"), messages.DTYPE_FLOAT32),
        ):
            datum.loss_fn_inputs[name].dtype = dtype
            datum.loss_fn_inputs[name].dense = values.tobytes()
            datum.loss_fn_inputs[name].shape.append(length)
    return message


def mutated_batch(model: str, sequence: int, rng: Random) -> bytes:
    """A batch that arrives as one, whose content is wrong somewhere."""
    message = batch(model, sequence, rng.random() < 0.5)
    datum = rng.choice(message.data)
    tensor = datum.loss_fn_inputs[rng.choice(["target_tokens", "weights"])]
    kind = rng.randrange(10)
    if kind == 0:
        tensor.dense = tensor.dense[rng.randint(0, 9) :] + rng.randbytes(rng.randint(0, 9))
    elif kind == 1:
        tensor.shape[:] = rng.choice([[], [0], [-1], [2**62], [3, 2**40], [3, 0], [1, 3], [3, 1, 1], [2**31, 2**31]])
    elif kind == 2:
        tensor.dtype = rng.choice([0, 1, 2, 3, 4, 77])
    elif kind == 3:
        datum.model_input[0].encoded_text.tokens = rng.randbytes(rng.randint(0, 24))
    elif kind == 4:
        tensor.dense = np.full(3, rng.choice([np.nan, np.inf, -1e38, 1e38]), "<f4").tobytes()
    elif kind == 5:
        values, rows, columns = (rng.randbytes(8 * rng.randint(0, 5)) for _ in range(3))
        tensor.sparse_csr.values, tensor.sparse_csr.crow_indices, tensor.sparse_csr.col_indices = values, rows, columns
        tensor.shape[:] = rng.choice([[3], [3, 4], [5, 2], [3, 65_536]])
    elif kind == 6:
        message.loss_fn = rng.choice(["", "ppo", "gspo", "custom", "x" * 1000, "dro", "\x1b[31m\n"])
    elif kind == 7:
        message.loss_fn_config[rng.choice(["beta", "clip_low_threshold", ""])] = rng.choice([np.nan, np.inf, -1.0])
    elif kind == 8:
        datum.loss_fn_inputs["\x1b[31m\n" + "x" * 500].shape.append(1)
    else:
        datum.model_input.add().image.data = b"png"
    return bytes(message.SerializeToString())


def corpus() -> list[bytes]:
    """Valid requests, one of each kind."""
    model = f"{SESSION}:train:0"
    posts = requests(SESSION, model, SEQUENCE).items()
    checkpoints = f"training_runs/{model}/checkpoints"
    return [
        *(f"POST {path} {JSON}\n{json.dumps(body)}".encode() for path, body in posts),
        f"POST telemetry {JSON}\n".encode() + b'{"events": []}',
        *(
            f"POST forward_backward {PROTOBUF}\n".encode() + batch(model, SEQUENCE, forward).SerializeToString()
            for forward in (True, False)
        ),
        *(
            f"POST forward_backward {PROTOBUF}\n".encode() + mutated_batch(model, SEQUENCE, Random(seed))
            for seed in range(40)
        ),
        f"POST sessions/{SESSION}/finish {JSON}\n".encode() + b'{"reason": {"type": "success"}}',
        f"PUT {checkpoints}/weights/fuzz/ttl {JSON}\n".encode() + b'{"ttl_seconds": 3600}',
        *(
            f"{line} {JSON}\n".encode()
            for line in (
                "GET healthz", "GET get_server_capabilities", f"GET training_runs/{model}", f"GET {checkpoints}",
                "GET training_runs?limit=2&offset=1", "GET checkpoints?limit=10", "GET sessions?limit=1",
                f"GET sessions/{SESSION}", f"GET samplers/{SESSION}:sample:2", f"DELETE {checkpoints}/weights/fuzz",
                f"GET {checkpoints}/external_weights/fuzz/external_weights_urls",
                f"GET downloads/{model}/fuzz/adapter_config.json?expires=99&signature=00",
            )
        ),
    ]  # fmt: skip


class Wire:
    """The application in front of a real engine and a real store; `case` sends it a request."""

    def __init__(self, directory: Path) -> None:
        app.RETRIEVE_TIMEOUT_S = 0.2
        served = find(PACKAGED_NAME)
        engine = Engine(Base(served.source, "cpu"))
        engine.base.max_length = _CONTEXT
        self.service = Handlers(engine, Store(directory / "store"), served)
        self._app = Guard(build_app(self.service, f"http://127.0.0.1:{_PORT}"), _KEY, _PORT)
        self._loop = asyncio.new_event_loop()
        self._session, self._left = "", 0

    def close(self) -> None:
        """Let go of the store."""
        self.service.store.close()
        self._loop.close()

    def case(self, document: bytes) -> None:
        """Send the request, wait for what it comes to, and see that it was answered as it should be."""
        self._loop.run_until_complete(self._case(document))

    async def _case(self, document: bytes) -> None:
        if not self._left:
            await self._renew()
        self._left -= 1
        head, _, body = document.partition(b"\n")
        method, path, content_type, *_ = [*head.decode("latin-1").split(" "), "", "", ""]
        status, answer = await self._send(
            method or "GET", path.replace(SESSION, self._session), content_type or JSON, self._filled(body)
        )
        assert 200 <= status < 300 or 400 <= status < 500, (status, answer, document)
        if status >= 400 and method != "HEAD":
            detail = json.loads(answer)
            if status != 408:
                assert detail["detail"].isprintable(), answer
                assert len(detail["detail"]) <= _SENTENCE, len(detail["detail"])
        elif b'"session_id"' in answer:
            await self._post(f"sessions/{json.loads(answer)['session_id']}/finish", {"reason": {}})
        elif path.endswith("/finish"):
            self._left = 0
        elif b'"request_id"' in answer:
            await self._settled(json.loads(answer)["request_id"], document)

    async def _settled(self, request_id: str, document: bytes) -> None:
        """Whatever a request comes to in the end, the fault is not the server's."""
        for _ in range(100):
            status, answer = await self._post("retrieve_future", {"request_id": request_id})
            held = request_id.rpartition(":")[2] not in (str(self._sequence - 1), "0")
            if status != 408 or held:  # one that is out of order waits for those before it
                break
        assert status in (200, 408, 404), (status, answer)
        if answer.startswith(b'{"error"'):
            failure = json.loads(answer)
            assert failure["category"] == "user", (failure, document)
            assert failure["error"].isprintable(), failure
            assert len(failure["error"]) <= _SENTENCE

    @property
    def _sequence(self) -> int:
        lane = self.service.lanes._lanes.get(f"{self._session}:train:0")
        return lane.next if lane is not None else 1

    def _filled(self, body: bytes) -> bytes:
        """The body with the session and the sequence number of now."""
        body = body.replace(SESSION.encode(), self._session.encode())
        message = messages.ForwardBackwardRequest()
        try:
            message.ParseFromString(body)
        except Exception:
            return body.replace(str(SEQUENCE).encode(), str(self._sequence).encode())
        if message.seq_id == SEQUENCE and message.model_id:
            message.seq_id = self._sequence
            return bytes(message.SerializeToString())
        return body.replace(str(SEQUENCE).encode(), str(self._sequence).encode())

    async def _renew(self) -> None:
        """End the session and begin another, as a client that has nothing to do with what came before."""
        if self._session:
            await self._post(f"sessions/{self._session}/finish", {"reason": {}})
        opened = await self._post("create_session", {"tags": [], "sdk_version": "0.38.0"})
        self._session, self._left = json.loads(opened[1])["session_id"], _REQUESTS_A_SESSION
        model = f"{self._session}:train:0"
        body = {**requests(self._session, model)["create_model"], "model_seq_id": 0}
        await self._settled(json.loads((await self._post("create_model", body))[1])["request_id"], b"")
        assert (await self._post("get_info", {"model_id": model}))[0] == 200

    async def _post(self, path: str, body: Any) -> tuple[int, bytes]:
        return await self._send("POST", path, JSON, json.dumps(body).encode())

    async def _send(self, method: str, target: str, content_type: str, body: bytes) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        raw = f"/api/v1/{path}".encode("utf-8", "replace")
        headers = [
            (b"host", f"127.0.0.1:{_PORT}".encode()),
            (b"x-api-key", _KEY.encode()),
            (b"content-type", content_type.encode("latin-1", "replace")),
        ]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "raw_path": raw,
            "path": unquote_to_bytes(raw).decode("utf-8", "replace"), "root_path": "",
            "query_string": query.encode("utf-8", "replace"), "headers": headers, "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", _PORT), "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        arriving, sent = _in_two_parts(body), []

        async def receive() -> dict[str, Any]:
            return next(arriving)

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(self._app(scope, receive, send), 60)
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], answer


def _in_two_parts(body: bytes) -> Iterator[dict[str, Any]]:
    middle = len(body) // 2
    yield {"type": "http.request", "body": body[:middle], "more_body": True}
    yield {"type": "http.request", "body": body[middle:], "more_body": False}
    while True:
        yield {"type": "http.disconnect"}
