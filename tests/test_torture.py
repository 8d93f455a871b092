"""Killed at chosen moments, and with disks that refuse: what comes out is the run that nothing disturbed."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from benchmarks.torture.disk_faults import Fault, build
from benchmarks.torture.kills import Kill
from benchmarks.torture.preloaded import PreloadedPython
from benchmarks.torture.scenarios import scenarios, write_data
from benchmarks.torture.stage import Stage
from benchmarks.torture.subjects import SERVER, TRAINER
from benchmarks.torture.trial import tortured, undisturbed

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
    for victim, module, calls in (("trainer", TRAINER, (58, 66, 74)), ("server", SERVER, (20, 28, 36)))
    for fault, call in zip((Fault.DISK_FULL, Fault.READ_ONLY, Fault.VANISHED), calls, strict=True)
]


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
    """What an undisturbed run of a scenario makes; trained when it is first asked for."""
    known = {}

    def made(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            stage = Stage(python, scenarios(data)[name][0], folder / "stage")
            known[name], _ = undisturbed(stage, folder / "control")
        return known[name]

    return made


@pytest.mark.parametrize(
    ("scenario", "kills"), [("embedded", KILLS), ("early stopping", LATER_KILLS), ("embedded", REFUSALS)]
)
def test_whatever_is_done_to_it_the_run_is_the_same(python, data, expected, tmp_path, scenario, kills):
    stage = Stage(python, scenarios(data)[scenario][0], tmp_path / "stage")
    trial = tortured(scenario, stage, expected(scenario), kills)
    assert trial.problems == []
    assert [as_planned(kill) for kill in trial.kills] == kills
    assert trial.resumes > 0


def as_planned(kill):
    """A kill that happened, without what it hit."""
    return dataclasses.replace(kill, hit="", happened=False)
