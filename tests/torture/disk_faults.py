"""Disks that fail at the n-th call: builds `disk_faults.c`, and arms it in processes that are to suffer."""

from __future__ import annotations

import ctypes
import enum
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = [Path(__file__).with_name(name) for name in ("disk_faults.c", "clock_jumps.c")]
_PLAN_VARIABLE = "TORTURE_DISK_{}"
_CONTROL = struct.Struct("qq240s")


class Fault(enum.IntEnum):
    """What happens at the n-th call that changes a file; as in disk_faults.c."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AMIDST = 2
    """After half of a write, or right after any other call."""
    DISK_FULL = 3
    READ_ONLY = 4
    VANISHED = 5
    POWER_CUT = 6
    """Before the call, and nothing is left but what was synced; see power_cut.py."""


@dataclass(frozen=True)
class DiskFault:
    """A fault at the n-th change of a file below `directory`, in the processes of one module (trainer or server)."""

    directory: Path
    control: Path
    module: str
    at: int
    fault: Fault

    @property
    def environment(self) -> dict[str, str]:
        """Return what the process must be started with."""
        plan = "\n".join([str(self.directory), str(self.control), str(self.at), str(int(self.fault))])
        return {_PLAN_VARIABLE.format(_key(self.module)): plan}

    def seen(self) -> tuple[int, str]:
        """(changes counted, the call that was hit: empty if none was)."""
        content = self.control.read_bytes() if self.control.exists() else b""
        if len(content) < _CONTROL.size:  # it is just being made
            return 0, ""
        count, _, event = _CONTROL.unpack_from(content)
        return count, event.rstrip(b"\0").decode("utf-8", "replace")


def build(folder: Path) -> Path:
    """Compile the library that is preloaded; CalledProcessError or FileNotFoundError without a C compiler."""
    library = folder / "faults.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, *SOURCES, "-ldl"], check=True)
    return library


def arm(module: str) -> None:
    """In a process that was started with a fault's environment: let it begin."""
    plan, library = os.environ.get(_PLAN_VARIABLE.format(_key(module))), os.environ.get("LD_PRELOAD")
    if plan and library:
        directory, control, at, fault = plan.split("\n")
        ctypes.CDLL(library).disk_faults_arm(
            directory.encode(), control.encode(), ctypes.c_long(int(at)), ctypes.c_int(int(fault))
        )


def _key(module: str) -> str:
    return module.replace(".", "_").upper()
