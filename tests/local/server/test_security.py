"""Nobody gets in without the key, nothing malformed gets through, and the server goes on serving."""

from __future__ import annotations

import http.client
import json
import random
import socket
import stat
from typing import Any
from urllib.parse import urlsplit

import pytest
import tinker
from fuzz.mutation import damaged
from fuzz.wire import batch, mutated_batch, requests
from support.local_service import MODEL, Running, call, post, random_data, retrieve, service_client

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.server.connections import MAX_BODY_BYTES
from tinker_utils.local.server.security import Signer


@pytest.fixture(scope="module")
def session(local_service: Running) -> str:
    body = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"}
    return post(local_service, "create_session", body)[1]["session_id"]


@pytest.fixture(scope="module")
def model(local_service: Running, session: str) -> str:
    return new_model(local_service, session, 0)


def new_model(running: Running, session: str, number: int) -> str:
    body = {"session_id": session, "model_seq_id": number, "base_model": MODEL, "lora_config": {"rank": 2, "seed": 1}}
    status, answer = post(running, "create_model", body)
    assert status == 200, answer
    retrieve(running, answer)
    return answer["model_id"]


def raw(running: Running, headers: list[tuple[str, str]], path: str = "/api/v1/healthz") -> int:
    """The status of a request with exactly these headers."""
    connection = http.client.HTTPConnection(urlsplit(running.base_url).netloc, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/api/v1/healthz", "/api/v1/checkpoints", "/api/v1/nothing", "/docs"])
@pytest.mark.parametrize("key", [None, "", "tml-", "tml-wrong", "\u00e9"])
def test_every_path_wants_the_key(local_service: Running, path: str, key: str | None) -> None:
    host = [("Host", urlsplit(local_service.base_url).netloc)]
    assert raw(local_service, host + ([] if key is None else [("X-API-Key", key)]), path) == 401


def test_the_right_key_with_something_behind_it_is_wrong(local_service: Running) -> None:
    host = ("Host", urlsplit(local_service.base_url).netloc)
    assert raw(local_service, [host, ("X-API-Key", local_service.api_key)]) == 200
    assert raw(local_service, [host, ("X-API-Key", local_service.api_key + "x")]) == 401
    assert raw(local_service, [host, ("X-API-Key", local_service.api_key[:-1])]) == 401


def test_only_loopback_names_are_answered(local_service: Running) -> None:
    """A web page that had its own name point here (DNS rebinding) sends that name."""
    port = urlsplit(local_service.base_url).port
    key = ("X-API-Key", local_service.api_key)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert raw(local_service, [("Host", host), key]) == 200
    for host in ("127.0.0.1", f"evil.example:{port}", f"localhost:{port + 1}", f"127.0.0.1.evil.example:{port}", ""):
        assert raw(local_service, [("Host", host), key]) == 403, host
    assert raw(local_service, [key]) in (400, 403)


def test_it_listens_on_loopback_only(local_service: Running) -> None:
    port = urlsplit(local_service.base_url).port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but loopback")
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match="refused|timed out"):
        socket.create_connection((address, port), timeout=2)


def test_a_body_that_is_too_large_is_refused(local_service: Running) -> None:
    split = urlsplit(local_service.base_url)
    headers = {"X-API-Key": local_service.api_key, "Content-Type": "application/json"}
    for announced in (True, False):
        connection = http.client.HTTPConnection(split.netloc, timeout=30)
        connection.putrequest("POST", "/api/v1/create_session")
        for name, value in headers.items():
            connection.putheader(name, value)
        if announced:
            connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        else:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        if not announced:
            block = b" " * (1 << 20)
            try:
                for _ in range(MAX_BODY_BYTES // len(block) + 1):
                    connection.send(b"%x\r\n%b\r\n" % (len(block), block))
            except (BrokenPipeError, ConnectionResetError):
                pass
        response = connection.getresponse()
        assert response.status == 413
        connection.close()
    assert call(local_service, "GET", "/api/v1/healthz")[0] == 200


def test_compressed_bodies_are_refused(local_service: Running) -> None:
    assert post(local_service, "create_session", b"{}", **{"Content-Encoding": "zstd"})[0] == 415
    assert post(local_service, "create_session", b"{}", "text/plain")[0] == 415


def test_the_store_is_private(local_service: Running) -> None:
    with service_client(local_service) as client:
        saved = client.create_lora_training_client(MODEL, rank=2).result()
        saved.save_weights_and_get_sampling_client().result()
        for save in (saved.save_state, saved.save_weights_external, saved.save_weights_for_sampler):
            save("private").result()
        for path in (local_service.store, *local_service.store.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            assert not path.is_symlink()


@pytest.mark.parametrize(
    "name", ["../../escape", "..", "/etc/passwd", "a/b", "a\\..\\b", "", "~root", "x" * 500, "a\u0000b"]
)
def test_no_name_leaves_the_store(local_service: Running, session: str, name: str) -> None:
    model = new_model(local_service, session, random.Random(name).randrange(1000, 10**6))
    before = sorted(local_service.store.parent.rglob("*escape*"))
    for sequence, endpoint in enumerate(("save_weights", "save_weights_for_sampler", "save_weights_external"), 1):
        status, answer = post(local_service, endpoint, {"model_id": model, "path": name, "seq_id": sequence})
        assert status == 400, (endpoint, answer)
    for path in (f"tinker://{model}/weights/{name}", f"tinker://../../{name}/weights/x", name):
        loading = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": False}
        assert post(local_service, "load_weights", loading)[0] in (400, 404)
        sampling = {"session_id": session, "sampling_session_seq_id": 1, "model_path": path}
        assert post(local_service, "create_sampling_session", sampling)[0] in (400, 404)
    assert sorted(local_service.store.parent.rglob("*escape*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/training_runs/..%2f..%2f/checkpoints/weights/x",
        "/api/v1/training_runs/../../checkpoints/weights/x",
        "/api/v1/training_runs/x/checkpoints/weights/%00",
        "/api/v1/training_runs/x/checkpoints/../weights",
        "/api/v1/downloads/x/y/z",
        "/api/v1/sessions/%ff",
        "/api/v1/sessions/",
        "/api/v1/checkpoints?limit=-1",
        "/api/v1/checkpoints?limit=99999999999999999999",
        "/api/v1/checkpoints?offset=%F0%9F%92%A9",
        "/" + "a" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "POST", "PATCH"])
def test_strange_paths_are_4xx(local_service: Running, method: str, path: str) -> None:
    status, _ = call(local_service, method, path, b"{}" if method in ("PUT", "POST") else None)
    assert 400 <= status < 500


def settled(running: Running, status: int, answer: Any) -> None:
    """A request was refused, or taken in and came to a result or to a failure that is the user's."""
    assert status == 200 or 400 <= status < 500, (status, answer)
    if status != 200 or "request_id" not in answer:
        return
    status, answer = retrieve(running, answer)
    assert status == 200, (status, answer)
    if isinstance(answer, dict) and "error" in answer:
        assert answer["category"] == "user", answer


def test_damaged_batches_are_refused(local_service: Running, session: str, model: str) -> None:
    """Sequence numbers are part of what is damaged, so each case gets what it needs to run: it is made first."""
    rng = random.Random(1)
    for number in range(300):
        data = damaged(batch(model, 1, bool(number % 2)).SerializeToString(), rng)
        status, answer = post(local_service, "forward_backward", data, "application/x-protobuf")
        assert status == 200 or 400 <= status < 500, (status, answer)
    fresh = new_model(local_service, session, 2)
    for number in range(1, 301):
        body = mutated_batch(fresh, number, rng)
        settled(local_service, *post(local_service, "forward_backward", body, "application/x-protobuf"))
    usable(local_service)


# What a newer SDK adds to these does not matter to the answer.
_OPEN = ("client/config", "create_session")

STRANGE = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    -(2**70),
    1e308,
    -0.0,
    "",
    "x" * 300,
    "\u0000",
    [],
    {},
    [[]],
    [1, "a"],
]


def test_strange_json_is_refused(local_service: Running, session: str, model: str) -> None:
    for endpoint, body in requests(session, model).items():
        for path in paths(body):
            for value in STRANGE:
                changed = json.loads(json.dumps(body))
                put(changed, path, value)
                status, answer = post(local_service, endpoint, changed)
                assert status == 200 or 400 <= status < 500, (endpoint, changed, status, answer)
        if endpoint == "telemetry":
            continue
        for text in (b"", b"null", b"[]", b"{", b"\xff", b"1" * 10_000, b"[" * 100_000, b'{"a": NaN}', b'{"type": 1}'):
            assert 400 <= post(local_service, endpoint, text)[0] < 500, (endpoint, text)
        strict = endpoint not in _OPEN
        assert post(local_service, endpoint, {**body, "unheard_of": 1})[0] == (422 if strict else 200)
    usable(local_service)


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where in a JSON value something can be replaced."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in items for path in [(*prefix, key), *paths(item, (*prefix, key))]]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def usable(running: Running) -> None:
    """A client that comes now is served as if nothing had happened."""
    with service_client(running) as client:
        model = client.create_lora_training_client(MODEL, rank=2).result()
        model.forward_backward(random_data(0), "cross_entropy")
        assert model.optim_step(tinker.AdamParams()).result().metrics["grad_norm"] > 0


def test_unknown_ids_are_404(local_service: Running, session: str) -> None:
    unknown = "00000000-0000-0000-0000-000000000000"
    for endpoint, body in (
        ("get_info", {"model_id": f"{unknown}:train:0"}),
        ("get_info", {"model_id": f"{session}:train:999"}),
        ("retrieve_future", {"request_id": f"{unknown}:train:0:1"}),
        ("session_heartbeat", {"session_id": unknown}),
        ("join_sampling_session", {"sampling_session_id": f"{session}:sample:999"}),
        ("optim_step", {"model_id": unknown, "seq_id": 1, "adam_params": {}}),
    ):
        assert post(local_service, endpoint, body)[0] == 404, endpoint


def test_signatures_expire_and_are_bound_to_their_file() -> None:
    signer = Signer()
    signature = signer.sign("a", 100)
    signer.check("a", "100", signature, now=99)
    for path, expires, given, now in (
        ("a", "100", signature, 101),
        ("b", "100", signature, 99),
        ("a", "101", signature, 99),
        ("a", "100", Signer().sign("a", 100), 99),
        ("a", "", signature, 99),
        ("a", "1e9", signature, 99),
        ("a", "\u0661", signature, 99),
        ("a", "100", "", 99),
        ("a", "100", "\u00e9", 99),
    ):
        with pytest.raises(RequestError, match="not valid or has expired"):
            signer.check(path, expires, given, now)
