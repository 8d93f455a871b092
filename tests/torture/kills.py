"""A kill: whom, when; and how it is done to an attempt."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torture import power_cut
from torture.disk_faults import DiskFault, Fault
from torture.stage import Process, Stage, ticks, until
from torture.subjects import SERVER, TRAINER

VICTIMS = ("trainer", "server", "both")


@dataclass(frozen=True)
class Kill:
    """A kill as planned, and what it hit.

    Attributes:
        victim: trainer, server or both.
        seconds: so long after the attempt's start; or
        call: at this change of a file, counted from the attempt's start, of the process `module`, which is killed
            before the call or amidst it.
        hit: the call that was hit.
        happened: False where the attempt ended before.
    """

    victim: str
    seconds: float | None = None
    call: int = 0
    module: str = ""
    fault: Fault = Fault.COUNT
    hit: str = ""
    happened: bool = False

    @property
    def refuses(self) -> bool:
        """Return whether it is no kill, but a disk that refuses from that call on: the process is to end by itself."""
        return self.fault in (Fault.DISK_FULL, Fault.READ_ONLY, Fault.VANISHED)

    @property
    def moment(self) -> str:
        """In which kind of moment the process was."""
        if self.seconds is not None:
            return "any moment"
        call = self.hit.partition(" ")[0] or "none"
        if self.refuses:
            return f"disk {self.fault.name.lower().replace('_', ' ')} at {call}"
        if self.fault is Fault.POWER_CUT:
            return f"power cut before {call}"
        return f"{'amidst' if self.fault is Fault.KILL_AMIDST else 'before'} {call}"


@dataclass(frozen=True)
class Costs:
    """What an undisturbed run takes: seconds, changes of files by trainer and server, readings of the wall clock."""

    seconds: float
    calls: dict[str, int]
    readings: int


def random_kill(chance: random.Random, costs: Costs, cuts: bool = False) -> Kill:
    """A kill drawn from a seeded generator: half of them at a moment, half at a change of a file.

    With `cuts`, the power of the trainer's machine is cut in the place of some.
    """
    victim = chance.choices(VICTIMS, (4, 3, 3))[0]
    if chance.random() < 0.5:
        return Kill(victim, seconds=chance.uniform(0, costs.seconds))
    module = {"trainer": TRAINER, "server": SERVER}.get(victim) or chance.choice((TRAINER, SERVER))
    faults = [Fault.KILL_BEFORE, Fault.KILL_AMIDST]
    if cuts and victim == "trainer":
        faults.append(Fault.POWER_CUT)
    fault = chance.choice(faults)
    return Kill(victim, call=chance.randint(1, costs.calls[module]), module=module, fault=fault)


class Executioner:
    """Does one kill to one attempt; `environment` is for the attempt's processes, and the object its `meanwhile`."""

    def __init__(self, stage: Stage, kill: Kill, control: Path) -> None:
        self._stage = stage
        self._kill = kill
        self._began = time.monotonic()
        directory = stage.store.resolve() if kill.module == SERVER else stage.run.path.resolve()
        self._fault = DiskFault(directory, control, kill.module, kill.call, kill.fault) if kill.call else None
        self.environment = self._fault.environment if self._fault else {}
        self.done = kill
        if kill.fault is Fault.POWER_CUT:
            power_cut.begin(directory)

    def __call__(self, trainer: Process) -> None:
        """Wait for the moment, and kill."""
        if self._fault is not None:
            self._by_disk(self._fault, trainer)
        else:
            self._by_clock(trainer)

    def mend(self) -> None:
        """After the attempt: give the disk back what it lost, or take from it what it never had."""
        if self._kill.fault is Fault.VANISHED and self.done.happened:
            directory = self._fault.directory if self._fault else self._stage.store
            directory.with_name(f"{directory.name}.gone").rename(directory)
        if self._kill.fault is Fault.POWER_CUT and self.done.happened:
            power_cut.restore(self._stage.run.path.resolve())

    def _by_clock(self, trainer: Process) -> None:
        for _ in ticks((self._kill.seconds or 0.0) - (time.monotonic() - self._began)):
            if trainer.ended():
                return
        server = self._kill.victim == "server"
        if server and not until(self._stage.kill_server, trainer):
            return
        if not server:
            trainer.kill()
        if self._kill.victim == "both":
            self._stage.kill_server()
        self.done = replace(self._kill, happened=True)
        if server:
            self._stage.restart_server()

    def _by_disk(self, fault: DiskFault, trainer: Process) -> None:
        if not until(lambda: bool(fault.seen()[1]), trainer):
            return
        self.done = replace(self._kill, happened=True, hit=fault.seen()[1])
        if self._kill.refuses:
            return
        if self._kill.module == SERVER:
            self._stage.server_ended()
        if self._kill.victim == "both":
            trainer.kill()
            self._stage.kill_server()
        if self._kill.victim == "server":
            self._stage.restart_server()
