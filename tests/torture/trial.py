"""A trial: one run, killed again and again, resumed each time, and judged at its end."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tinker_utils.errors import TinkerUtilsError
from torture.clock_jumps import MachineClock
from torture.disk_faults import DiskFault, Fault
from torture.kills import Costs, Executioner, Kill, random_kill
from torture.stage import Attempt, HangError, Stage, outcome
from torture.subjects import REFUSED, SERVER, TRAINER
from torture.verdict import EXPIRED, Made, checkpoints, differences, faults, made, untold_tokens

_SIGKILLED = -9
_LOST = 0.2


@dataclass
class Trial:
    """What was done to one run, and what is wrong with it: nothing, if all is well."""

    name: str
    kills: list[Kill] = field(default_factory=list)
    resumes: int = 0
    fallbacks: int = 0
    jumps: int = 0
    problems: list[str] = field(default_factory=list)


def undisturbed(stage: Stage, control: Path) -> tuple[Made, Costs]:
    """Train without a disturbance: what is made, and what it takes.

    Raises:
        RuntimeError: it did not end well, so that nothing can be compared with it.
    """
    counting = [
        DiskFault(directory.resolve(), control.with_suffix(f".{module}"), module, 0, Fault.COUNT)
        for module, directory in ((TRAINER, stage.run.path), (SERVER, stage.store))
    ]
    stage.clock = MachineClock(control.with_suffix(".clock"))
    attempt = stage.attempt({key: value for each in counting for key, value in each.environment.items()})
    stage.close()
    if attempt.status != 0:
        raise RuntimeError(f"the undisturbed run ended with status {attempt.status}: {attempt.said}")
    if problems := faults(stage):
        raise RuntimeError(f"the undisturbed run: {problems}")
    calls = {each.module: each.seen()[0] for each in counting}
    return made(stage), Costs(attempt.seconds, calls, stage.clock.readings)


def tortured(
    name: str, stage: Stage, expected: Made, kills: Iterable[Kill], chance: random.Random | None = None
) -> Trial:
    """Train through all these kills and on to the end, and judge what comes out.

    With `chance`, the checkpoint that the run would resume from is removed, or expires, after some kills.
    """
    trial = Trial(name)
    kill: Kill | None = None
    try:
        for number, planned in enumerate(kills):
            before, ended = kill, _has_ended(stage)
            executioner = Executioner(stage, planned, stage.ledger.with_name(f"control-{number}"))
            attempt = stage.attempt(executioner.environment, executioner)
            executioner.mend()
            kill = executioner.done
            if kill.happened:
                trial.kills.append(kill)
            _look_at(trial, stage, attempt, kill)
            if attempt.status == 0:
                # A run that has ended returns at once, and starts no server: what the kill before left is still there.
                kill = before if ended else kill
                break
            if chance is not None and chance.random() < _LOST:
                trial.fallbacks += _lose_latest(stage, chance)
        else:
            kill = kill if _has_ended(stage) else None
            _look_at(trial, stage, stage.attempt(), None)
        stage.close()
        trial.jumps = len(stage.clock.jumped) if stage.clock else 0
        # Killed while a run that has ended is tidied up, a server leaves that to the next start.
        untidy = kill is not None and kill.happened and kill.victim != "trainer"
        # Of a server that is not the directory's own, an attempt removes nothing that an earlier one has saved.
        trial.problems += faults(stage, untidy) + differences(made(stage), expected, untidy or stage.separate)
        if unaccounted := untold_tokens(stage):
            trial.problems.append(f"{unaccounted} tokens that the server computed are not in what was spent")
        # A kill may fall into the writing of the one or of the other.
        told = "".join(file.read_text(encoding="utf-8") for file in (stage.run.log, stage.run.metrics))
        if trial.fallbacks and "expired or was deleted" not in told:
            trial.problems.append("a checkpoint was gone, and nothing said so")
    except (HangError, TinkerUtilsError, LookupError, ValueError, OSError) as error:
        trial.problems.append(f"{type(error).__name__}: {error}")
    finally:
        stage.close()
    return trial


def random_kills(chance: random.Random, costs: Costs, count: int, cuts: bool = False) -> Iterator[Kill]:
    """So many kills, drawn when they are due."""
    return (random_kill(chance, costs, cuts) for _ in range(count))


def _look_at(trial: Trial, stage: Stage, attempt: Attempt, kill: Kill | None) -> None:
    """Whether an attempt ended as it may: by itself, by the kill, or with a sentence because its server was killed."""
    resumed = sum(record["type"] == "resume" for record in _readable(stage))
    # From a server whose disk refuses, a run tries to recover by itself, and resumes more than once.
    most = math.inf if kill is not None and kill.refuses else trial.resumes + 1
    if not trial.resumes <= resumed <= most:
        trial.problems.append(f"{resumed} resume records after {trial.resumes}")
    trial.resumes = resumed
    said = outcome(attempt)
    killed = kill is not None and kill.happened
    by_kill = killed and kill is not None and kill.victim != "server" and attempt.status == _SIGKILLED
    # A trainer whose server was killed, or whose disk refuses, ends with an error of the project's own, in one line.
    refused = killed and kill is not None and (kill.refuses or kill.victim != "trainer") and attempt.status == REFUSED
    if not (attempt.status == 0 or by_kill or (refused and said)):
        trial.problems.append(f"after {kill}: ended with status {attempt.status}, saying {attempt.said!r}")


def _readable(stage: Stage) -> list[dict[str, object]]:
    """The records so far, the last of which may be torn."""
    if not stage.run.metrics.exists():
        return []
    whole = stage.run.metrics.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.split(b"\n") if line]


def _has_ended(stage: Stage) -> bool:
    """Return whether run.json says so: then a trainer returns at once, and starts no server."""
    state = stage.run.read_state()
    return state is not None and state.ended


def _lose_latest(stage: Stage, chance: random.Random) -> bool:
    """Remove the checkpoint that the run would resume from, or let it expire; only if an earlier one is left."""
    state = stage.run.read_state()
    points = [] if state is None or state.ended else state.resume_points
    left = [directory for point in points for directory in checkpoints(stage, point.path)]
    if len(left) < 2:
        return False
    directory = max(left, key=lambda path: path.name)
    if chance.random() < 0.5:
        shutil.rmtree(directory)
    else:
        file = directory / "checkpoint.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text(encoding="utf-8")), "expires": EXPIRED}), encoding="utf-8"
        )
    return True
