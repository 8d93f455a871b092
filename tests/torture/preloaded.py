"""A Python that starts in milliseconds, with torch and tinker imported: a parent imports them once, and forks.

`PreloadedPython.executable` takes `-m MODULE ARGUMENTS` as Python does. Behind it stands a small script that hands its
arguments, environment and standard streams to the parent, which forks a process for them; the script ends as that
process does. Nothing but the start differs from a process of its own: the parent has one thread, and never computes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import random
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PRELOADED = (
    "tinker", "tinker.types", "torch", "peft", "safetensors.torch", "uvicorn", "httptools", "transformers.models.auto",
    "transformers.models.qwen3.modeling_qwen3", "peft.utils.transformers_weight_conversion",
    "tinker_utils.training.start", "tinker_utils.local.server.serve", "tinker_utils.export.adapter", "torture.subjects",
)  # fmt: skip
_MESSAGE = 1 << 17
_PATHS = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # the package, and this folder

_EXECUTABLE = """#!{python} -IS
import array, json, os, signal, socket, sys
parent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
parent.connect({address!r})
request = json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd()}}).encode()
parent.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
for stream in (0, 1, 2):
    os.close(stream)
parent.recv(100)
status = parent.recv(100)
code = json.loads(status)["status"] if status else -9
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@dataclass
class Forked:
    """A process that the parent forked: its id, and the connection on which its end is told."""

    pid: int
    _connection: socket.socket

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it; TimeoutError if it goes on."""
        self._connection.settimeout(timeout_s)
        answer = self._connection.recv(_MESSAGE)
        self._connection.close()
        return int(json.loads(answer)["status"])

    def ended(self) -> bool:
        """Return whether it has ended; `wait` then answers at once."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def kill(self) -> None:
        """SIGKILL, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class PreloadedPython:
    """The parent process; a context manager that ends it.

    Args:
        environment: variables for the parent, and so for what is forked, beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="preloaded-")
        folder = Path(self._folder.name)
        self._address = str(folder / "socket")
        self.executable = folder / "python"
        self.executable.write_text(_EXECUTABLE.format(python=sys.executable, address=self._address), encoding="utf-8")
        self.executable.chmod(0o700)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.preloaded", self._address, str(self.executable)],
            env={
                **os.environ,
                **environment,
                "PYTHONPATH": os.pathsep.join([*_PATHS, *filter(None, sys.path)]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the preloaded Python did not start; what it said stands above")

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> Forked:
        """A process that runs `-m MODULE ARGUMENTS`, with its standard output and error on the descriptor `output`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._address)
        request = {"arguments": list(arguments), "environment": dict(environment), "directory": str(Path.cwd())}
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            socket.send_fds(connection, [json.dumps(request).encode()], [nothing.fileno(), output, output])
        return Forked(json.loads(connection.recv(_MESSAGE))["pid"], connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


class _Parent:
    """Forks for whoever connects, and tells each how its process ended."""

    def __init__(self, address: str, executable: str) -> None:
        self._executable = executable
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, lambda: sys.exit(0))

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE, 3)
        if not message:
            connection.close()
            return
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            _become(request, streams, self._executable)
        for stream in streams:
            os.close(stream)
        handle = os.pidfd_open(pid)
        self._selector.register(handle, selectors.EVENT_READ, lambda: self._ended(handle, pid, connection))
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(connection, pid))
        connection.send(json.dumps({"pid": pid}).encode())

    def _ended(self, handle: int, pid: int, connection: socket.socket) -> None:
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(handle)
        os.close(handle)
        if connection.fileno() in self._selector.get_map():
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
        connection.close()

    def _abandoned(self, connection: socket.socket, pid: int) -> None:
        """Whoever waited for the process is gone: the script that stands for it was killed, and so is the process."""
        self._selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become(request: Mapping[str, Any], streams: Sequence[int], executable: str) -> None:
    """In the fork: be the process that was asked for, and end."""
    code = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        library = os.environ.get("LD_PRELOAD", "")
        os.environ.clear()
        os.environ.update(request["environment"], LD_PRELOAD=library)
        os.chdir(request["directory"])
        random.seed()
        # Should it hang, SIGABRT shows where.
        faulthandler.enable()
        # What it starts with its own executable is preloaded, too.
        sys.executable = executable
        _, module, *arguments = request["arguments"]
        sys.argv = [module, *arguments]
        importlib.import_module("torture.subjects").prepare(module)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    address, executable = sys.argv[1:]
    for name in _PRELOADED:
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"the preloaded Python has {threads} threads, and a fork would have one of them only"
    # Reaped by waitpid alone, and never a copy of everything because of a reference count.
    gc.collect()
    gc.freeze()
    parent = _Parent(address, executable)
    print("ready", flush=True)
    parent.serve()


if __name__ == "__main__":
    _main()
