"""A wall clock that jumps, for all processes of a stage: arms `clock_jumps.c` in them, and sets it between them."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import time
from collections.abc import Sequence
from pathlib import Path

Jump = tuple[int, float]
"""At which reading of the clock it is set, and by how many seconds it is wrong from then on."""

HOUR, DAY = 3600.0, 86400.0

_VARIABLE = "TORTURE_CLOCK"
_MAX_JUMPS = 16
_COUNT = struct.Struct("q")
_OFFSET = struct.Struct("q")
_JUMP = struct.Struct("qq")


class MachineClock:
    """The wall clock that a stage's processes share, as those of one machine do: a kill does not put it right.

    Args:
        control: a file to be made, through which the processes are told.
        jumps: when it jumps while they run; `set` lets it jump at once.
    """

    def __init__(self, control: Path, jumps: Sequence[Jump] = ()) -> None:
        if len(jumps) > _MAX_JUMPS:
            raise ValueError(f"{len(jumps)} jumps where {_MAX_JUMPS} are the most")
        self.jumps = tuple(jumps)
        self._control = control
        plan = [*self.jumps, *[(0, 0.0)] * (_MAX_JUMPS - len(jumps))]
        control.write_bytes(_COUNT.pack(0) + _OFFSET.pack(0) + b"".join(_JUMP.pack(at, _ns(by)) for at, by in plan))

    @property
    def environment(self) -> dict[str, str]:
        """Return what the processes must be started with."""
        return {_VARIABLE: str(self._control)}

    @property
    def readings(self) -> int:
        """Return how often the clock was read."""
        return int(_COUNT.unpack_from(self._control.read_bytes())[0])

    @property
    def jumped(self) -> list[Jump]:
        """The jumps that have happened, of those that were planned."""
        return [jump for jump in self.jumps if jump[0] <= self.readings]

    def set(self, seconds: float) -> None:
        """Let it be wrong by so many seconds from now on."""
        file = os.open(self._control, os.O_WRONLY)
        os.pwrite(file, _OFFSET.pack(_ns(seconds)), _COUNT.size)
        os.close(file)


def to_1970() -> float:
    """By how many seconds a clock is wrong that an empty battery has set back to the second day of 1970."""
    return DAY - time.time()


def random_jumps(chance: random.Random, readings: int) -> list[Jump]:
    """One to three jumps within so many readings: by moments, hours, days or years, and perhaps put right again."""
    by = (-2.0, 2.0, -HOUR, HOUR, -DAY, DAY, 400 * DAY, to_1970(), 0.0)
    moments = sorted(chance.sample(range(1, readings), chance.randint(1, 3)))
    return [(at, chance.choice(by)) for at in moments]


def arm() -> None:
    """In a process that was started with a clock's environment: let it have that clock."""
    control, library = os.environ.get(_VARIABLE), os.environ.get("LD_PRELOAD")
    if control and library:
        ctypes.CDLL(library).clock_jumps_arm(control.encode())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
