"""Killed at chosen moments, and with disks that refuse: what comes out is the run that nothing disturbed."""

from __future__ import annotations

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
# At changes of files: early enough for the attempt to get there, late enough for the run to go on meanwhile.
KILLS = [
    Kill("trainer", call=5, module=TRAINER, fault=AMIDST),
    Kill("trainer", call=70, module=TRAINER, fault=AMIDST),
    Kill("server", call=60, module=SERVER, fault=BEFORE),
    Kill("both", call=62, module=TRAINER, fault=BEFORE),
    Kill("server", seconds=0.3),
    Kill("server", call=61, module=SERVER, fault=AMIDST),
    Kill("trainer", call=75, module=TRAINER, fault=BEFORE),
]
LATER_KILLS = [
    Kill("both", call=80, module=SERVER, fault=AMIDST),
    Kill("trainer", call=81, module=TRAINER, fault=AMIDST),
    Kill("both", seconds=0.6),
    Kill("trainer", call=66, module=TRAINER, fault=BEFORE),
    Kill("server", call=57, module=SERVER, fault=AMIDST),
]
REFUSALS = [
    Kill(victim, call=call, module=module, fault=fault)
    for victim, module in (("trainer", TRAINER), ("server", SERVER))
    for fault, call in ((Fault.DISK_FULL, 58), (Fault.READ_ONLY, 66), (Fault.VANISHED, 74))
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
    assert len(trial.kills) == len(kills)
    assert trial.resumes > 0
