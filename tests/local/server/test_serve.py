"""How the server ends, and what becomes of the work of a client that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.local_service import MODEL, Running, call, post

from tinker_utils.basics.threads import in_background
from tinker_utils.local import LocalService, start_local_service

ROOT = Path(__file__).resolve().parents[3]
IMPATIENT = """
import sys
from tinker_utils.local.__main__ import main
from tinker_utils.local.server import handlers
handlers.HEARTBEAT_LIMIT_S = 6
sys.exit(main(["--store", sys.argv[1], "--threads", "1", "--exit-with-stdin"]))
"""
# A shell's background jobs are begun without it.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def running(service: LocalService) -> Running:
    return Running(service.base_url, service.api_key, Path())


def opened(server: Running) -> str:
    body = {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"}
    return str(post(server, "create_session", body)[1]["session_id"])


def long_sample(server: Running, session: str) -> str:
    """Ask for what takes a minute or more; returns the request's id."""
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL}
    sampler = post(server, "create_sampling_session", body)[1]["sampling_session_id"]
    sampling = {"max_tokens": 4000, "temperature": 1.0, "seed": 1}
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    body = {"prompt": prompt, "sampling_params": sampling, "num_samples": 64}
    return str(post(server, "asample", {**body, "sampling_session_id": sampler, "seq_id": 1})[1]["request_id"])


def wait_until_it_computes(service: LocalService) -> None:
    def ticks() -> int:
        times = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times))

    before = ticks()
    while ticks() < before + os.sysconf("SC_CLK_TCK"):
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_busy_server_ends_soon_and_tells_who_waits(tmp_path: Path, number: int, code: int) -> None:
    with start_local_service(MODEL, tmp_path / "store", threads=1) as service:
        server = running(service)
        session = opened(server)
        poll = {"request_id": long_sample(server, session)}
        polled = in_background(lambda: post(server, "retrieve_future", poll), "poll")
        wait_until_it_computes(service)
        service.process.send_signal(number)
        status, answer = polled.result(timeout=10)
        assert (status, answer["category"]) == (200, "server")
        assert "was told to end" in answer["error"]
        assert post(server, "session_heartbeat", {"session_id": session})[0] == 410
        assert post(server, "create_session", {"tags": [], "sdk_version": "0.38.0"})[0] == 503
        assert service.process.wait(timeout=15) == code
    assert not service.log_tail()


LOADING = """
import os, sys
from tinker_utils.local.__main__ import main
from tinker_utils.local.engine import base_model
def load(*_):
    print("loading", file=sys.stderr, flush=True)
    while True:
        pass
base_model.Base.__init__ = load
os._exit(main(["--store", sys.argv[1], "--exit-with-stdin"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_still_loads_its_model_ends_at_once(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, "-c", HEARS + LOADING, str(tmp_path / "store")]
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stderr=pipe) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"loading\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert process.stderr.read() == b""


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[LocalService]:
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    command = [sys.executable, "-c", IMPATIENT, str(tmp_path / "store")]
    with LocalService(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe), 600) as service:
        yield service


def test_what_a_client_queued_is_dropped_when_it_is_gone_and_not_when_the_server_slept(impatient: LocalService) -> None:
    server = running(impatient)
    gone, there = opened(server), opened(server)
    long_sample(server, there)
    making = {"model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    requests = {}
    for session in (gone, there):
        requests[session] = post(server, "create_model", {"session_id": session, **making})[1]["request_id"]

    def models(session: str) -> list[str]:
        return list(call(server, "GET", f"/api/v1/sessions/{session}")[1]["training_run_ids"])

    # Nobody can be heard while the server is stopped.
    for session in (gone, there):
        post(server, "session_heartbeat", {"session_id": session})
    impatient.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    impatient.process.send_signal(signal.SIGCONT)
    assert len(models(gone)) == len(models(there)) == 1
    began = time.monotonic()
    while models(gone) and time.monotonic() - began < 30:
        post(server, "session_heartbeat", {"session_id": there})
        time.sleep(0.5)
    assert (len(models(gone)), len(models(there))) == (0, 1)
    status, answer = post(server, "retrieve_future", {"request_id": requests[gone]})
    assert status == 404
    assert "was silent for too long" in answer["detail"]
    status, answer = post(server, "get_info", {"model_id": f"{gone}:train:0"})
    assert status == 404
    assert "without a heartbeat" in answer["detail"]
    # The session is there, and a client that comes back can begin with a checkpoint.
    assert post(server, "create_model", {"session_id": gone, **making, "model_seq_id": 1})[0] == 200
