"""Killed at chosen moments, with power cuts, faulty disks and wrong clocks: what comes out is the undisturbed run."""

from __future__ import annotations

import dataclasses
import shutil
import time

import pytest

from torture.clock_jumps import DAY, HOUR, MachineClock, to_1970
from torture.disk_faults import Fault, build
from torture.kills import Kill
from torture.ordinary import OrdinaryPython
from torture.preloaded import PreloadedPython
from torture.scenarios import scenarios, write_data
from torture.stage import Stage
from torture.subjects import SERVER, TRAINER
from torture.trial import tortured, undisturbed
from torture.verdict import differences, faults, made, records

pytestmark = pytest.mark.skipif(
    not shutil.which("cc"), reason="the faulty disk is written in C, and there is no compiler"
)

BEFORE, AMIDST = Fault.KILL_BEFORE, Fault.KILL_AMIDST
# Each must happen, on a machine of any speed. So they come at changes of files, which every attempt makes that has four
# steps left, and so early that an attempt gets no further than two steps: by the trainer's 80th change no second
# checkpoint is in run.json, and a server has made one checkpoint by its 42nd. A moment of 0 seconds is the first at
# which there is a server.
KILLS = [
    Kill("trainer", call=5, module=TRAINER, fault=AMIDST),
    Kill("trainer", call=70, module=TRAINER, fault=AMIDST),
    Kill("server", call=40, module=SERVER, fault=BEFORE),
    Kill("both", call=62, module=TRAINER, fault=BEFORE),
    Kill("server", seconds=0.0),
    Kill("server", call=41, module=SERVER, fault=AMIDST),
    Kill("trainer", call=75, module=TRAINER, fault=BEFORE),
]
LATER_KILLS = [
    Kill("both", call=42, module=SERVER, fault=AMIDST),
    Kill("trainer", call=76, module=TRAINER, fault=AMIDST),
    Kill("both", call=33, module=TRAINER, fault=AMIDST),
    Kill("trainer", call=66, module=TRAINER, fault=BEFORE),
    Kill("server", call=37, module=SERVER, fault=AMIDST),
]
REFUSALS = [
    Kill(victim, call=call, module=module, fault=fault)
    for victim, module, calls in (("trainer", TRAINER, (70, 78, 86)), ("server", SERVER, (20, 28, 36)))
    for fault, call in zip((Fault.DISK_FULL, Fault.READ_ONLY, Fault.VANISHED), calls, strict=True)
]

CUTS = [Kill("trainer", call=call, module=TRAINER, fault=Fault.POWER_CUT) for call in (120, 75, 69, 90)]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    library = build(tmp_path_factory.mktemp("library"))
    with PreloadedPython({"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}) as preloaded:
        yield preloaded


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("torture") / "data")


@pytest.fixture(scope="module")
def expected(python, data, tmp_path_factory):
    """Return what an undisturbed run of a scenario makes; trained when it is first asked for."""
    known = {}

    def made(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            stage = Stage(python, scenarios(data)[name][0], folder / "stage", scenarios(data)[name][1])
            known[name], _ = undisturbed(stage, folder / "control")
        return known[name]

    return made


@pytest.mark.parametrize(
    ("scenario", "kills"),
    [("embedded", KILLS), ("early stopping", LATER_KILLS), ("embedded", REFUSALS), ("separate", CUTS)],
)
def test_whatever_is_done_to_it_the_run_is_the_same(python, data, expected, tmp_path, scenario, kills):
    config, separate = scenarios(data)[scenario]
    stage = Stage(python, config, tmp_path / "stage", separate)
    trial = tortured(scenario, stage, expected(scenario), kills)
    assert trial.problems == []
    assert [as_planned(kill) for kill in trial.kills] == kills
    assert trial.resumes > 0


def as_planned(kill):
    """A kill that happened, without what it hit."""
    return dataclasses.replace(kill, hit="", happened=False)


def test_a_forked_run_is_the_ordinary_one(data, expected, tmp_path):
    """All others are compared with a forked run; it has the metrics, batches and bytes of one that a user starts."""
    python = OrdinaryPython(tmp_path, {"OMP_NUM_THREADS": "1"})
    stage = Stage(python, scenarios(data)["embedded"][0], tmp_path / "stage")
    attempt = stage.attempt()
    assert attempt.status == 0, attempt.said
    assert faults(stage) == []
    assert differences(made(stage), expected("embedded")) == []


# At readings of the wall clock by the trainer and its server, of which a run makes about 580. By the 405th, the first
# checkpoint is on its way to expire, and saves and removals come after it.
@pytest.mark.parametrize(
    ("scenario", "jumps"),
    [
        ("expiring", [(1, 0.5), (85, -HOUR), (210, 0.0), (405, HOUR), (505, 0.0)]),
        ("expiring", [(405, DAY)]),
        ("expiring", [(405, 400 * DAY), (505, 0.0)]),
        ("expiring", [(250, to_1970())]),
        ("expiring", [(1, to_1970()), (405, 0.0)]),
        # Samples that the SDK gives up are asked for once more: one jump ahead, so that no second one hits those.
        ("samples", [(317, 3 * HOUR), (500, 0.0)]),
    ],
    ids=["an hour, time and again", "a day", "a year, put right", "to 1970", "from 1970", "while it samples"],
)
def test_a_clock_that_jumps_changes_nothing(python, data, expected, tmp_path, scenario, jumps):
    stage = Stage(python, scenarios(data)[scenario][0], tmp_path / "stage")
    stage.clock = MachineClock(tmp_path / "clock", jumps)
    trial = tortured(scenario, stage, expected(scenario), kills=[])
    assert trial.problems == []
    assert stage.clock.jumped == jumps
    assert any(abs(wrong - jumps[-1][1]) < HOUR / 2 for wrong in errors(stage))
    speeds = [record["tokens_per_sec"] for record in records(stage) if record["type"] == "train"]
    assert all(0 < speed < 1e6 for speed in speeds), speeds


def test_a_clock_that_jumps_between_kill_and_resume_changes_nothing(python, data, expected, tmp_path):
    stage = Stage(python, scenarios(data)["expiring"][0], tmp_path / "stage")
    stage.clock = MachineClock(tmp_path / "clock")
    # As above; only the first lets the run get to its eighth step, so that a checkpoint is on its way to expire.
    kills = [
        Kill("trainer", call=170, module=TRAINER, fault=BEFORE),
        Kill("both", call=30, module=SERVER, fault=AMIDST),
        Kill("server", call=20, module=SERVER, fault=BEFORE),
        Kill("both", call=40, module=TRAINER, fault=AMIDST),
    ]

    def one_by_one():
        for kill, wrong in zip(kills, (0.0, 400 * DAY, to_1970(), DAY), strict=True):
            stage.clock.set(wrong)
            yield kill
        stage.clock.set(-HOUR)

    trial = tortured("expiring", stage, expected("expiring"), one_by_one())
    assert trial.problems == []
    assert [as_planned(kill) for kill in trial.kills] == kills
    assert abs(errors(stage)[-1] + HOUR) < HOUR / 2


def errors(stage):
    """By how many seconds the clock was wrong at each record; less the seconds since, which are few."""
    return [record["timestamp"] - time.time() for record in records(stage)]
