"""What a small request must not be able to make the embedded server do: allocate, wait, or reach out of its store."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from fuzz.wire import batch
from support.local_service import MODEL, Running, call, post, retrieve

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraSpec
from tinker_utils.local.protocol.paths import Reference
from tinker_utils.local.protocol.requests import MAX_JSON_BYTES
from tinker_utils.local.protocol.tensors import MAX_ROWS, decode_loss_request, parse_forward_backward
from tinker_utils.local.server.connections import MAX_HEAD_BYTES
from tinker_utils.local.server.scheduler import MAX_AHEAD
from tinker_utils.local.server.sessions import MAX_SESSIONS, Sessions
from tinker_utils.local.store.checkpoint import CheckpointInfo
from tinker_utils.local.store.store import Store

PROTOBUF = "application/x-protobuf"
CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus"


@pytest.fixture(scope="module")
def model(local_service: Running) -> str:
    opened = post(local_service, "create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"})[1]
    body = {"session_id": opened["session_id"], "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    answer = post(local_service, "create_model", body)[1]
    assert retrieve(local_service, answer)[1]["type"] == "create_model"
    return str(answer["model_id"])


def test_a_sequence_number_that_is_a_truth_value_fills_no_place(local_service: Running, model: str) -> None:
    """`true` is 1 to Python: refused as it is, it must not take the place of request 1."""
    assert post(local_service, "save_weights", {"model_id": model, "seq_id": True, "path": "x"})[0] == 422
    status, answer = post(local_service, "save_weights", {"model_id": model, "seq_id": 1, "path": "x"})
    assert status == 200
    assert retrieve(local_service, answer)[1]["path"].endswith("/weights/x")


def test_sparse_tensors_of_a_few_bytes_cannot_stand_for_gigabytes(local_service: Running, model: str) -> None:
    message = batch(model, 2)
    for datum in message.data:
        datum.model_input[0].encoded_text.tokens = np.zeros(4000, "<i4").tobytes()
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.sparse_csr.crow_indices = np.zeros(4001, "<i8").tobytes()
        tensor.shape[:] = [4000, 65_536]
    status, answer = post(local_service, "forward_backward", message.SerializeToString(), PROTOBUF)
    assert status == 200
    failure = retrieve(local_service, answer)[1]
    assert failure["category"] == "user"
    assert "expand to more than" in failure["error"]


def test_a_negative_size_makes_no_room_for_gigabytes() -> None:
    message = batch("any", 1)
    for datum, shape in zip(message.data, ([4000, 65_536], [-(2**31), 2**31 - 1]), strict=True):
        datum.model_input[0].encoded_text.tokens = np.zeros(4000, "<i4").tobytes()
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.sparse_csr.crow_indices = np.zeros(4001, "<i8").tobytes()
        tensor.shape[:] = shape
    wanted = r"data\[1\].*'target_tokens'.* has a negative size in its shape \[-2147483648, 2147483647\]"
    with pytest.raises(RequestError, match=wanted):
        decode_loss_request(parse_forward_backward(message.SerializeToString()))


def test_more_rows_than_are_ever_sent_are_refused(local_service: Running, model: str) -> None:
    message = batch(model, 3)
    for _ in range(MAX_ROWS):
        message.data.add()
    status, answer = post(local_service, "forward_backward", message.SerializeToString(), PROTOBUF)
    assert status == 200
    assert "rows" in retrieve(local_service, answer)[1]["error"]


def test_a_request_far_ahead_of_its_turn_is_refused(local_service: Running, model: str) -> None:
    body = {"model_id": model, "seq_id": MAX_AHEAD + 100, "path": "x"}
    status, answer = post(local_service, "save_weights", body)
    assert status == 400
    assert "the next one of this model is" in answer["detail"]


def test_json_is_bounded_below_what_a_batch_may_take(local_service: Running) -> None:
    body = b'{"session_id": "' + b"x" * MAX_JSON_BYTES + b'"}'
    assert post(local_service, "session_heartbeat", body)[0] == 413
    assert post(local_service, "session_heartbeat", body, PROTOBUF)[0] == 413


def test_a_head_without_an_end_is_cut_off(local_service: Running) -> None:
    """It comes before any key is asked for, so anybody on this machine could send it."""
    split = urlsplit(local_service.base_url)
    for head in (b"GET /api/v1/healthz HTTP/1.1\r\nX-Long: ", b"GET /"):
        with socket.create_connection((split.hostname, split.port), timeout=30) as connection:
            connection.sendall(head)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(100):
                    connection.sendall(b"x" * MAX_HEAD_BYTES)
                    if not connection.recv(1 << 16):
                        raise ConnectionResetError
    assert call(local_service, "GET", "/api/v1/healthz")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /api/v1/create_session HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/create_session HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /api/v1/create_session HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://evil.example/api/v1/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /api/v1/healthz HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(local_service: Running, request_: bytes) -> None:
    split = urlsplit(local_service.base_url)
    with socket.create_connection((split.hostname, split.port), timeout=30) as connection:
        connection.sendall(request_)
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 4")
    assert call(local_service, "GET", "/api/v1/healthz")[0] == 200


def test_a_body_that_ends_early_leaves_nothing_behind(local_service: Running) -> None:
    split = urlsplit(local_service.base_url)
    head = (
        f"POST /api/v1/create_session HTTP/1.1\r\nHost: {split.netloc}\r\nX-API-Key: {local_service.api_key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    before = call(local_service, "GET", "/api/v1/sessions")[1]["sessions"]
    with socket.create_connection((split.hostname, split.port), timeout=30) as connection:
        connection.sendall(head.encode())
    assert call(local_service, "GET", "/api/v1/sessions")[1]["sessions"] == before


def test_any_temperature_draws_a_token(local_service: Running, model: str) -> None:
    session = model.partition(":")[0]
    opened = {"session_id": session, "sampling_session_seq_id": 1, "base_model": MODEL}
    sampler = post(local_service, "create_sampling_session", opened)[1]["sampling_session_id"]
    drawn = []
    for sequence, temperature in enumerate((0, 5e-324, 1e-300, 1e308)):
        body = {
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
            "sampling_params": {"max_tokens": 3, "temperature": temperature, "seed": 1},
            "sampling_session_id": sampler,
            "seq_id": sequence,
        }
        drawn.append(retrieve(local_service, post(local_service, "asample", body)[1])[1])
    assert all(isinstance(answer, bytes) for answer in drawn)
    assert drawn[0] == drawn[1] == drawn[2]  # the limit of a falling temperature is the likeliest token


def test_sessions_that_have_ended_are_forgotten_in_time() -> None:
    sessions = Sessions()
    first = sessions.create({}, None)
    first.finished = True
    for _ in range(MAX_SESSIONS):
        last = sessions.create({}, None)
    assert len(sessions.all()) == MAX_SESSIONS
    with pytest.raises(RequestError, match="close one of them"):
        sessions.create({}, None)
    last.finished = True
    sessions.create({}, None)


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "store")
    yield store
    store.close()


def planted(store: Store, content: str, name: str = "state~1") -> Path:
    place = store.root / "runs" / "00000000-0000-4000-8000-000000000000_train_0" / "weights" / name
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text(content)
    return place


def test_a_planted_checkpoint_is_what_its_place_says_or_nothing(store: Store, tmp_path: Path) -> None:
    content = (CORPUS / "checkpoint" / "checkpoint.json").read_text()
    place = planted(store, content)
    assert [info.reference.name for info in store.list()] == ["state"]
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert store.list() == []
    with pytest.raises(RequestError, match="There is no checkpoint"):
        store.read(Reference.from_path("tinker://00000000-0000-4000-8000-000000000000:train:0/weights/state"))
    planted(store, content.replace("8000-000000000000:train", "8000-000000000001:train"), "other~1")
    assert store.list() == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["created"], "now"),
        (["created"], 1e300),
        (["expires"], float("nan")),
        (["size_bytes"], -1),
        (["has_optimizer"], 1),
        (["user_metadata"], {"k": 3}),
        (["lora", "rank"], "2"),
        (["lora", "target_modules"], [1]),
        (["lora", "alpha"], None),
        (["progress", "optim_steps"], 0.5),
        (["reference", "name"], "../../x"),
    ],
)
def test_a_damaged_description_is_left_alone(store: Store, where: list[str], value: object) -> None:
    data = json.loads((CORPUS / "checkpoint" / "checkpoint.json").read_text())
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    place = planted(store, json.dumps(data))
    assert store.list() == []
    store.prune()
    assert place.is_dir()


def test_what_the_store_writes_is_read_back(store: Store) -> None:
    info = CheckpointInfo.from_json(json.loads((CORPUS / "checkpoint" / "checkpoint.json").read_text()))
    assert isinstance(info.lora, LoraSpec)
    with store.writing(info) as directory:
        (directory / "file").write_bytes(b"x")
    assert [each.reference for each in store.list()] == [info.reference]
