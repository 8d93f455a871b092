"""A Python that starts as a user's does: every process anew, with nothing imported, loaded or counted ahead of it.

What is forked from `PreloadedPython` is compared with what starts here. Only the server's ledger is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.subjects import EXECUTABLE_VARIABLE

_PATHS = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])  # the package, this folder

# Takes `-m MODULE ARGUMENTS`, as Python does, and gives the server its ledger; the trainer starts the server with it.
_EXECUTABLE = """#!/bin/sh
shift
PYTHONPATH='{paths}' exec '{python}' -m torture.subjects "$@"
"""


@dataclass
class Started:
    """A process that was started; as `Forked`."""

    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status, or minus the signal that ended it; TimeoutError if it goes on."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error

    def ended(self) -> bool:
        """Return whether it has ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL, at once."""
        self._process.kill()


class OrdinaryPython:
    """Starts processes; as `PreloadedPython`.

    Args:
        folder: an empty directory.
        environment: variables for the processes, beside those that each is given.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.pid = os.getpid()
        self._environment = environment
        self._executable = folder / "python"
        self._executable.write_text(_EXECUTABLE.format(paths=_PATHS, python=sys.executable), encoding="utf-8")
        self._executable.chmod(0o700)

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: int) -> Started:
        """A process that runs `-m MODULE ARGUMENTS`, with its standard output and error on the descriptor `output`."""
        variables = {**environment, **self._environment, EXECUTABLE_VARIABLE: str(self._executable)}
        variables.pop("LD_PRELOAD", None)
        command = [str(self._executable), *arguments]
        return Started(subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output))
