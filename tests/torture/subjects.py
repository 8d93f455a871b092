"""What is tortured, by the names of its modules, and what is done in its processes before they begin.

`python -m torture.subjects MODULE ARGUMENTS` does it in a process that is started, and then runs the module.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from torture import clock_jumps, disk_faults, ledger

TRAINER, SERVER = "torture.trainer", "tinker_utils.local"
EXECUTABLE_VARIABLE = "TORTURE_EXECUTABLE"
"""Environment variable that names what a process is to start others with, in place of Python itself."""
REFUSED = 3
"""Exit status of a trainer that ended with an error of the project's own."""


def prepare(module: str) -> None:
    """In a process that is about to run a module: let disk and clock fail, and a server keep a ledger, as planned."""
    disk_faults.arm(module)
    clock_jumps.arm()
    if module == SERVER and ledger.VARIABLE in os.environ:
        ledger.install(Path(os.environ[ledger.VARIABLE]))


def _main() -> None:
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    sys.executable = os.environ.get(EXECUTABLE_VARIABLE, sys.executable)
    prepare(module)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
