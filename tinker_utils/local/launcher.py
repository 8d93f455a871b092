"""Starts the embedded service as a process of its own, and ends it: all that other rooms import of this one is here.

So it hands on what a client has to know of the service, too, and it imports neither torch nor tinker.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import IO, NoReturn, TypeVar

from tinker_utils.basics.closing import Closing
from tinker_utils.config.paths import as_path
from tinker_utils.errors import ServiceError
from tinker_utils.local.protocol.logprobs import WEIGHTED_LOGPROBS
from tinker_utils.local.protocol.lora import lora_user_metadata
from tinker_utils.local.store.store import holds_run

__all__ = ["WEIGHTED_LOGPROBS", "LocalService", "holds_run", "lora_user_metadata", "start_local_service"]

START_TIMEOUT_S = 600.0
"""Long enough to download a model; the tiny one is ready in seconds."""

_TAIL_LINES = 20
# Seconds between two looks at whether the service still runs, while a session is opened.
_CHECK_SECONDS = 0.5

T = TypeVar("T")


class LocalService(Closing):
    """A running embedded service; a context manager that ends it.

    The process also ends by itself when this one does, however that happens: it watches the pipe between them.

    Attributes:
        base_url: where it answers.
        api_key: the key it wants.
        process: the process.
    """

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self.process = process
        self._log: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        assert process.stdout is not None
        assert process.stderr is not None
        self._log_reader = _drain(process.stderr, self._log)
        line = self._first_line(process.stdout, timeout_s)
        try:
            address = json.loads(line)
            self.base_url: str = address["base_url"]
            self.api_key: str = address["api_key"]
        except (ValueError, KeyError, TypeError):
            self._fail("it did not print its address")

    def close(self) -> None:
        """End the service; harmless if it has ended."""
        process = self.process
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log_reader.join(5)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def check_alive(self) -> None:
        """Raise a ServiceError if the service has ended; the message ends with what it said last."""
        if self.process.poll() is not None:
            last = self._log[-1] if self._log else "nothing"
            raise ServiceError(
                f"the embedded service ended with status {self.process.returncode} (last log line: {last}); "
                "start the run again, and it resumes from its latest checkpoint."
            )

    def wait_for(self, opened: Future[T]) -> T:
        """Wait for a session to be opened, but not if the service has ended: the SDK would try for minutes.

        Raises:
            ServiceError: the service has ended. It is ended, too, where the session cannot be opened.
        """
        try:
            while not opened.done():
                wait([opened], timeout=_CHECK_SECONDS)
                if not opened.done():
                    self.check_alive()
            return opened.result()
        except BaseException:
            self.close()
            raise

    def log_tail(self) -> str:
        """Return the last lines that the service logged."""
        return "\n".join(self._log)

    def __repr__(self) -> str:
        # Without the key: a repr ends up in notebooks.
        return f"LocalService({getattr(self, 'base_url', 'not started')!r})"

    def _first_line(self, stream: IO[bytes], timeout_s: float) -> bytes:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        watchdog = threading.Timer(timeout_s, give_up)
        watchdog.start()
        try:
            line = stream.readline()
        finally:
            watchdog.cancel()
        if late.is_set():
            self._fail("it was not ready in time")
        if not line:
            self._fail(f"it ended with code {self.process.wait()}")
        return line

    def _fail(self, why: str) -> NoReturn:
        self.close()
        raise ServiceError(f"The embedded service did not start: {why}. It said: {self.log_tail() or 'nothing'}")


def start_local_service(
    model: str,
    store: Path | str,
    *,
    threads: int | None = None,
    timeout_s: float = START_TIMEOUT_S,
    meanwhile: Callable[[], object] | None = None,
) -> LocalService:
    """Start the embedded service and wait until it can be used; from asyncio, call it through `asyncio.to_thread`.

    Args:
        model: a directory, a name on the hub, or "tiny" for the packaged model.
        store: the directory for checkpoints; made if it is missing.
        threads: threads that torch computes with; None leaves the choice to torch.
        timeout_s: give up after so many seconds.
        meanwhile: called once while the service starts, most of which is importing PyTorch.

    Raises:
        ServiceError: the service did not start; the message ends with what it logged.
    """
    command = [
        sys.executable,
        "-m",
        "tinker_utils.local",
        "--model",
        model,
        "--store",
        str(as_path(store, "store")),
        "--exit-with-stdin",
    ]
    if threads is not None:
        command += ["--threads", str(threads)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            # Ctrl-C in a terminal reaches a whole process group. The client decides what it means: it may want to
            # finish its step and save, for which it needs the service.
            start_new_session=True,
        )
    except OSError as error:
        raise ServiceError(f"The embedded service cannot be started: {error}.") from error
    if meanwhile is not None:
        try:
            meanwhile()
        except BaseException:
            process.kill()
            process.communicate()
            raise
    return LocalService(process, timeout_s)


def _environment() -> dict[str, str]:
    """Return this process's environment with this very package first in the path: both sides must be one version."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root if not path else root + os.pathsep + path}


def _drain(stream: IO[bytes], log: collections.deque[str]) -> threading.Thread:
    """Read a stream to its end, so that the writer never blocks, and keep the last lines."""

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                log.append(line.decode("utf-8", "replace").rstrip())

    thread = threading.Thread(target=read, name="local-service-log", daemon=True)
    thread.start()
    return thread
