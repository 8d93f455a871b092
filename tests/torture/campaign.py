"""Campaigns: many trials over all scenarios, drawn from a seed or one for each change of a file."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torture.clock_jumps import MachineClock, random_jumps
from torture.disk_faults import Fault
from torture.kills import Costs, Kill
from torture.preloaded import PreloadedPython
from torture.scenarios import scenarios, write_data
from torture.stage import Stage
from torture.subjects import SERVER, TRAINER
from torture.trial import Trial, random_kills, tortured, undisturbed
from torture.verdict import Made

T = TypeVar("T")

_KILLS_A_RUN = 8
_AT_ONCE = 2
_WRONG_CLOCKS = 0.3


class Tormentor:
    """Runs trials, two at a time.

    Args:
        python: what forks the processes.
        folder: an empty directory.
        seed: decides what is killed when, as far as moments in time can be repeated.
        tell: called with each trial when it has ended.
    """

    def __init__(self, python: PreloadedPython, folder: Path, seed: int, tell: Callable[[Trial], None]) -> None:
        self._python = python
        self._folder = folder
        self._seed = seed
        self._tell = tell
        self._data = write_data(folder / "data")
        self._expected: dict[str, tuple[Made, Costs]] = {}

    def random(self, kills: int) -> list[Trial]:
        """Trials until so many kills have happened."""
        trials: list[Trial] = []
        names = list(scenarios(self._data))
        for name in names:
            self._reference(name)
        numbers = itertools.count()
        while sum(len(trial.kills) for trial in trials) < kills:
            batch = [(n, names[n % len(names)]) for n in itertools.islice(numbers, _AT_ONCE)]
            trials += self._all(lambda each: self._random_trial(*each), batch)
        return trials

    def every_change(self, stride: int, faults: Sequence[Fault]) -> list[Trial]:
        """A trial for each n, or each `stride`-th: the trainer, and the server, killed at their n-th change of a file.

        `faults` are what happens there, one after the other. The power is cut where the trainer is: the service is
        elsewhere, and what it has computed is paid for.
        """
        cut = Fault.POWER_CUT in faults
        name = "separate" if cut else next(iter(scenarios(self._data)))
        _, costs = self._reference(name)
        plans = [
            (number, name, Kill(victim, call=call, module=module, fault=fault))
            for number, (victim, module, fault, call) in enumerate(
                (victim, module, fault, call)
                for victim, module in (("trainer", TRAINER), ("server", SERVER))[: 1 if cut else 2]
                for fault in faults
                for call in range(1 + self._seed % stride, costs.calls[module] + 1, stride)
            )
        ]
        return self._all(lambda each: self._planned_trial(*each), plans)

    def _all(self, trial: Callable[[T], Trial], plans: Iterable[T]) -> list[Trial]:
        trials = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for each in pool.map(trial, plans):
                trials.append(each)
                self._tell(each)
        return trials

    def _reference(self, name: str) -> tuple[Made, Costs]:
        if name not in self._expected:
            stage = self._stage(name, f"undisturbed {name}")
            self._expected[name] = undisturbed(stage, stage.ledger.with_name("control"))
        return self._expected[name]

    def _random_trial(self, number: int, name: str) -> Trial:
        expected, costs = self._reference(name)
        chance = random.Random(f"{self._seed}:{number}")
        stage = self._stage(name, str(number))
        kills = random_kills(chance, costs, chance.randint(2, _KILLS_A_RUN), cuts=stage.separate)
        if chance.random() < _WRONG_CLOCKS:
            # With a clock that is wrong, too, all checkpoints can be gone at once, and a run rightly refuses to go on.
            stage.clock = MachineClock(self._folder / f"clock {number}", random_jumps(chance, costs.readings))
            return tortured(f"{number} {name}", stage, expected, kills)
        return tortured(f"{number} {name}", stage, expected, kills, chance)

    def _planned_trial(self, number: int, name: str, kill: Kill) -> Trial:
        stage = self._stage(name, f"change {number} {kill.fault.name}")
        return tortured(f"{number} {name}", stage, self._expected[name][0], [kill])

    def _stage(self, name: str, folder: str) -> Stage:
        config, separate = scenarios(self._data)[name]
        return Stage(self._python, config, self._folder / folder, separate)
