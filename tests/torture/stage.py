"""Where a run is tortured: its directory, its server, its ledger, and one attempt to train it to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinker_utils.config.loading import dump_config
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.local.server.serve import KEY_VARIABLE
from tinker_utils.run.directory import RunDirectory
from torture import ledger
from torture.clock_jumps import MachineClock
from torture.ordinary import OrdinaryPython, Started
from torture.preloaded import Forked, PreloadedPython
from torture.subjects import SERVER, TRAINER

Process = Forked | Started

KEY = "tml-torture-torture-torture"
_PATIENCE_S = 90.0
_POLL_S = 0.004


class HangError(Exception):
    """A process neither went on nor ended."""


@dataclass
class Attempt:
    """How an attempt ended: the trainer's exit status, and the last line that it printed."""

    status: int
    said: str
    seconds: float


class Stage:
    """One run, from its first attempt to its last.

    Args:
        python: what starts the processes.
        config: what to train; `service` is replaced by the address where the server is `separate`.
        folder: an empty directory for all of it.
        separate: a server that outlives the trainer, instead of one that the trainer starts.

    Attributes:
        clock: the wall clock of the processes, where it is not the true one.
    """

    def __init__(
        self, python: PreloadedPython | OrdinaryPython, config: TrainingConfig, folder: Path, separate: bool = False
    ) -> None:
        self.python = python
        self.separate = separate
        self.run = RunDirectory(folder / "run")
        self.ledger = folder / "ledger.jsonl"
        self.clock: MachineClock | None = None
        self.store = folder / "run" / "checkpoints"
        self._output = folder / "output"
        self._config = folder / "config.yaml"
        self._port = _free_port()
        self._server: Process | None = None
        self._earlier: int | None = None  # an embedded server of an earlier attempt, which may still be ending
        folder.mkdir(parents=True)
        if separate:
            self.store = folder / "store"
            config = dataclasses.replace(config, service=f"http://127.0.0.1:{self._port}")
        self._config.write_text(dump_config(config), encoding="utf-8")

    def attempt(
        self,
        environment: Mapping[str, str] | None = None,
        meanwhile: Callable[[Process], None] = lambda trainer: None,
    ) -> Attempt:
        """Train until the trainer ends by itself, or by what `meanwhile`, called with its process, does to it."""
        variables = {**self._variables(), **(environment or {})}
        self._earlier = self._embedded_pid()
        began = time.monotonic()
        if self.separate and (environment or self._server is None):
            self.kill_server()
            self._start_server(variables)
        with self._output.open("wb") as output:
            trainer = self.python.fork(
                ["-m", TRAINER, str(self._config), str(self.run.path)], variables, output.fileno()
            )
            meanwhile(trainer)
            try:
                status = trainer.wait(_PATIENCE_S)
            except TimeoutError:
                os.kill(trainer.pid, signal.SIGABRT)
                trainer.wait(_PATIENCE_S)
                where = self._output.read_text(encoding="utf-8", errors="replace")
                raise HangError(f"the trainer did not end within {_PATIENCE_S:.0f} s, but was here: {where}") from None
        said = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return Attempt(status, said[-1] if said else "", time.monotonic() - began)

    def kill_server(self) -> bool:
        """SIGKILL the attempt's server, if there is one now; whether there was."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
            return True
        pid = self._embedded_pid()
        if pid is None or pid == self._earlier:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def server_ended(self) -> None:
        """Take note that a separate server ended by itself."""
        if self._server is not None:
            self._server.wait()
            self._server = None

    def restart_server(self) -> None:
        """Start the separate server again, on the same port and store."""
        if self.separate and self._server is None:
            self._start_server(self._variables())

    def close(self) -> None:
        """End the separate server."""
        if self._server is not None:
            self.kill_server()

    def _variables(self) -> dict[str, str]:
        keys = {KEY_VARIABLE: KEY, "TINKER_UTILS_SERVICE_KEY": KEY, ledger.VARIABLE: str(self.ledger)}
        return {**os.environ, **keys, **(self.clock.environment if self.clock else {})}

    def _start_server(self, variables: Mapping[str, str]) -> None:
        arguments = ["-m", SERVER, "--model", "tiny", "--store", str(self.store), "--port", str(self._port)]
        read, write = os.pipe()
        self._server = self.python.fork(arguments, variables, write)
        os.close(write)
        with os.fdopen(read, "rb") as said:
            said.readline()

    def _embedded_pid(self) -> int | None:
        """The process that holds the store's lock, as its file says; only if it is a child of the preloaded Python."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.store / "lock").read_text(encoding="utf-8").split()[1])
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            if f"PPid:\t{self.python.pid}\n" in status and "State:\tZ" not in status:
                return pid
        return None


def until(condition: Callable[[], bool], trainer: Process, seconds: float = _PATIENCE_S) -> bool:
    """Wait for a condition; False if the trainer ends, or the time is over, before it is so."""
    for _ in ticks(seconds):
        if condition():
            return True
        if trainer.ended():
            return condition()
    return False


def ticks(seconds: float) -> Iterator[float]:
    """Moments until so many seconds are over."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        yield now
        time.sleep(_POLL_S)


def outcome(attempt: Attempt) -> dict[str, str]:
    """Return what a trainer printed, decoded; {} if it was killed before, or printed a traceback."""
    with contextlib.suppress(ValueError):
        said = json.loads(attempt.said)
        if isinstance(said, dict):
            return said
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
