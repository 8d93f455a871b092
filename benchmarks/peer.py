"""One contestant in a process of its own: it is started once, and does its work whenever it is told to.

The two sides talk in lines of JSON. `Peer` is the benchmark's side; `serve_rounds` is the contestant's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
BENCH_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


class Peer:
    """A contestant's process; a context manager that ends it."""

    def __init__(self, python: Path | str, script: str, *arguments: str) -> None:
        if python == BENCH_PYTHON and not BENCH_PYTHON.exists():
            raise SystemExit("TRL has an environment of its own, which is missing: run make .venv-bench/.installed")
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).parent / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._read()

    def round(self, command: str = "go") -> dict[str, Any]:
        """One round of work; what the contestant says about it."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # What a library prints before is not for us.
        for line in self._process.stdout:
            if line.startswith("@"):
                answer: dict[str, Any] = json.loads(line[1:])
                return answer
        raise SystemExit(f"{self._process.args} ended with status {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def tell(answer: dict[str, Any]) -> None:
    """The contestant's answer to a round, or that it is ready."""
    print("@" + json.dumps(answer), flush=True)


def await_round() -> str:
    """Return what to do next; the process ends when nobody asks any more."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    return line.strip()


def serve_rounds(work: Callable[[str], dict[str, Any]]) -> None:
    """Do the work for every round that is asked for."""
    tell({})
    while True:
        tell(work(await_round()))


def peak_mib(process: int | str = "self") -> float:
    """The most memory that a process has had in use so far, on Linux."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
