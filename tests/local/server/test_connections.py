"""Whoever keeps the server waiting is closed in time, however many they are, and an honest client is served."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tinker
from support.local_service import MODEL, Running, post, random_data, rest_client, service_client

from tinker_utils.local import LocalService
from tinker_utils.local.server import connections

ROOT = Path(__file__).resolve().parents[3]
# The server as it is, but less patient.
IMPATIENT = """
import sys
from tinker_utils.local.__main__ import main
from tinker_utils.local.server import connections
connections.HEAD_LIMIT_S, connections.STALL_LIMIT_S, connections.MAX_UNUSED = 3, 8, 50
sys.exit(main(["--store", sys.argv[1], "--threads", "1", "--exit-with-stdin"]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    store, pipe = tmp_path_factory.mktemp("impatient") / "store", subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IMPATIENT, str(store)]
    process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)
    with LocalService(process, 600) as service:
        yield service


@pytest.fixture
def impatient(server: LocalService) -> Running:
    return Running(server.base_url, server.api_key, Path(server.process.args[-1]))


def connected(running: Running) -> socket.socket:
    split = urlsplit(running.base_url)
    connection = socket.create_connection((split.hostname, split.port), timeout=30)
    connection.setblocking(False)
    return connection


def head(running: Running, request: str, length: int = 0, key: str | None = None) -> bytes:
    lines = [f"{request} HTTP/1.1", f"Host: {urlsplit(running.base_url).netloc}", "Content-Type: application/json"]
    lines += [f"X-API-Key: {key or running.api_key}", f"Content-Length: {length}", "\r\n"]
    return "\r\n".join(lines).encode()


def is_closed(connection: socket.socket) -> bool:
    """Take in what has come, and return whether that was all."""
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_who_keeps_the_server_waiting_is_closed_and_who_waits_for_it_is_not(impatient: Running) -> None:
    known, stranger = head(impatient, "GET /api/v1/healthz"), head(impatient, "GET /api/v1/healthz", key="tml-wrong")
    posting = head(impatient, "POST /api/v1/create_session", 1000)
    sent: dict[str, tuple[bytes, bytes]] = {  # what is sent at once, and what is sent again and again
        "nothing": (b"", b""),
        "half a head": (known[:60], b""),
        "a head byte by byte": (known[:-4], b"x"),
        "lines before a head": (b"", b"\r\n"),
        "a wrong key, and no body": (head(impatient, "POST /api/v1/create_session", 1000, "tml-wrong"), b""),
        "a wrong key, again and again": (stranger, stranger),
        "no body": (posting, b""),
        "a body byte by byte": (posting, b" "),
        "chunks without an end": (
            posting.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked"),
            b"1\r\n \r\n",
        ),
        "a second head byte by byte": (known + known[:-4], b"x"),
        "lines after a request": (known, b"\r\n"),
        "nothing after a request": (known, b""),
    }
    waiting = {name: connected(impatient) for name in sent}
    opened = post(impatient, "create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"})[1]
    making = {"session_id": opened["session_id"], "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    model = post(impatient, "create_model", making)[1]["model_id"]
    # It is the second request, and the first never comes: there is no result for a long time.
    held = post(impatient, "save_weights", {"model_id": model, "seq_id": 2, "path": "x"})[1]["request_id"]
    body = b'{"request_id": "%s"}' % held.encode()
    patient = connected(impatient)
    patient.send(head(impatient, "POST /api/v1/retrieve_future", len(body)) + body)
    for name, (first, _) in sent.items():
        waiting[name].send(first)
    began = time.monotonic()
    while waiting and time.monotonic() - began < 25:
        time.sleep(0.3)
        waiting = {name: each for name, each in waiting.items() if not is_closed(each)}
        for name, connection in waiting.items():
            with contextlib.suppress(OSError):
                connection.send(sent[name][1])
    assert not waiting
    assert time.monotonic() - began > 3
    assert not is_closed(patient)
    patient.close()


def test_an_answer_may_be_read_slowly_but_not_never(impatient: Running) -> None:
    with service_client(impatient) as client:
        model = client.create_lora_training_client(MODEL, rank=256).result()
        saved = model.save_weights_external("large").result().path
        urls = rest_client(impatient).get_external_weights_urls(saved).result().urls
    url = urlsplit(urls["adapter_model.safetensors"])
    (written,) = impatient.store.rglob("external_weights/*/adapter_model.safetensors")
    slow, never = connected(impatient), connected(impatient)
    for connection in (slow, never):
        connection.send(head(impatient, f"GET {url.path}?{url.query}", key="none is wanted"))
    began, taken = time.monotonic(), b""
    while select.select([slow], [], [], 30)[0] and (piece := slow.recv(1 << 16)):
        taken += piece
        time.sleep(0.05)
    assert taken.endswith(written.read_bytes())
    assert time.monotonic() - began > 8
    with pytest.raises(ConnectionResetError):
        while never.recv(1 << 16):
            pass


def test_a_client_works_while_another_opens_connections_without_end(server: LocalService, impatient: Running) -> None:
    ended, opened, files = threading.Event(), [0], [0]

    def flood() -> None:
        idle: list[socket.socket] = []
        while not ended.is_set():
            with contextlib.suppress(OSError):  # so many wait that one more has to try again
                idle.append(connected(impatient))
                opened[0] += 1
            for connection in idle[:-700]:
                connection.close()
            del idle[:-700]
            if opened[0] % 100 == 0:
                files.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
        for connection in idle:
            connection.close()

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with service_client(impatient) as client:
            model = client.create_lora_training_client(MODEL, rank=2).result()
            while opened[0] < 2000:
                model.forward_backward(random_data(0), "cross_entropy")
                assert model.optim_step(tinker.AdamParams()).result(60).metrics["grad_norm"] > 0
    finally:
        ended.set()
        flooding.join()
    assert max(files) < 50 + 5 * connections.BACKLOG + 50  # some are on their way in, and some on their way out
