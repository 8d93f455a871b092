"""Starting and ending the service as a process."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.local_service import MODEL, Running, call

from tinker_utils.errors import ServiceError
from tinker_utils.local import LocalService, start_local_service

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_importing_the_launcher_loads_neither_torch_nor_tinker() -> None:
    code = (
        "import sys, tinker_utils.local.launcher; "
        "print([m for m in ('torch', 'tinker', 'transformers', 'peft', 'starlette', 'pydantic') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_the_service_dies_with_its_parent(tmp_path: Path) -> None:
    """However the parent dies: here by SIGKILL, after which it can do nothing for its children."""
    code = (
        "import pathlib, sys, threading; from tinker_utils.local import LocalService, start_local_service\n"
        "service = start_local_service(sys.argv[1], pathlib.Path(sys.argv[2]), threads=1)\n"
        "print(service.process.pid, service.base_url, service.api_key, flush=True); threading.Event().wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, MODEL, str(tmp_path / "store")], env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid, base_url, api_key = parent.stdout.readline().decode().split()
        assert call(Running(base_url, api_key, tmp_path), "GET", "/api/v1/healthz")[0] == 200
        assert api_key not in Path(f"/proc/{pid}/cmdline").read_text()
        assert os.getpgid(int(pid)) != os.getpgid(parent.pid), "Ctrl-C must not reach it"
        server = os.pidfd_open(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
        ended, _, _ = select.select([server], [], [], 30)
        os.close(server)
        assert ended


def test_a_model_that_is_not_found_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="ended with code 2. It said: The model '.*nowhere' is not there") as caught:
        start_local_service(str(tmp_path / "nowhere"), tmp_path / "store")
    assert "Traceback" not in str(caught.value)


def test_a_store_in_use_is_told_in_a_sentence(local_service: Running) -> None:
    with pytest.raises(ServiceError, match="is in use by another server"):
        start_local_service(MODEL, local_service.store)


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--threads", "0"], ["--device", "tpu"], []])
def test_a_wrong_command_line_ends_with_code_2(tmp_path: Path, arguments: list[str]) -> None:
    store = ["--store", str(tmp_path)] if arguments else []
    command = [sys.executable, "-m", "tinker_utils.local", *store, *arguments]
    output = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert output.returncode == 2
    assert "Traceback" not in output.stderr
    assert not output.stdout


def test_the_address_is_one_line_of_json_and_a_given_key_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinker_utils.local", "--store", str(tmp_path / "store")]
    with (
        (tmp_path / "stderr").open("w+") as errors,
        subprocess.Popen(
            [*command, "--served-name", "Qwen/Qwen3-8B"],
            env={**ENVIRONMENT, "TINKER_UTILS_LOCAL_KEY": "tml-kept"},
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        assert address["api_key"] == "tml-kept"
        running = Running(address["base_url"], "tml-kept", tmp_path)
        _, answer = call(running, "GET", "/api/v1/get_server_capabilities")
        assert [model["model_name"] for model in answer["supported_models"]] == ["tiny", "Qwen/Qwen3-8B"]
        process.terminate()
        assert process.communicate(timeout=30) == (b"", None)
        assert process.returncode == 0
        errors.seek(0)
        log = errors.read()
    assert "Traceback" not in log


def process_that(code: str) -> subprocess.Popen[bytes]:
    """A process in the place of the server."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)


def test_closing_ends_the_process_and_may_be_repeated() -> None:
    code = """print('{"base_url": "http://127.0.0.1:1", "api_key": "tml-secret"}', flush=True); input()"""
    service = LocalService(process_that(f"import sys\ntry:\n {code}\nexcept EOFError:\n sys.exit(7)"), 30)
    assert repr(service) == "LocalService('http://127.0.0.1:1')"
    service.close()
    service.close()
    assert service.process.returncode == 7


def test_a_service_that_does_not_become_ready_is_ended() -> None:
    with pytest.raises(ServiceError, match="was not ready in time. It said: loading"):
        LocalService(process_that("import sys, time; print('loading', file=sys.stderr, flush=True); time.sleep(99)"), 1)


def test_a_service_that_says_something_else_is_ended() -> None:
    with pytest.raises(ServiceError, match="did not start"):
        LocalService(process_that("print('hello', flush=True); input()"), 30)


def test_what_is_done_meanwhile_is_done_once_and_its_failure_ends_the_service(tmp_path: Path) -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before, started = children(), []

    def fail() -> None:
        started.append(children() - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_local_service(MODEL, tmp_path / "store", threads=1, meanwhile=fail)
    assert [len(each) for each in started] == [1], "it runs while the service starts"
    assert children() == before
