"""What is tortured, by the names of its modules, and what is done in its processes before they begin."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.torture import clock_jumps, disk_faults, ledger

TRAINER, SERVER = "benchmarks.torture.trainer", "tinker_utils.local"
REFUSED = 3
"""Exit status of a trainer that ended with an error of the project's own."""


def prepare(module: str) -> None:
    """In a process that is about to run a module: let disk and clock fail, and a server keep a ledger, as planned."""
    disk_faults.arm(module)
    clock_jumps.arm()
    if module == SERVER and ledger.VARIABLE in os.environ:
        ledger.install(Path(os.environ[ledger.VARIABLE]))
