"""How threads wait for each other, by how busy other processes keep the cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinker_utils.local.server import neighbours
from tinker_utils.local.server.neighbours import Neighbours

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells nobody what others compute")

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

WAITING = """
import json, os, threading, time, torch
from tinker_utils.local.engine.compat import sleep_while_waiting

x = torch.randn(300, 300)

def cost() -> float:
    "Processor seconds of products that two threads share, with pauses in which nothing is to be done."
    began = time.process_time()
    for _ in range(100):
        x @ x
        time.sleep(0.01)
    return time.process_time() - began

def threads() -> int:
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
before = cost(), threads()
until = threading.Event()
sleep_while_waiting(until, len(os.sched_getaffinity(0)) + 1)
while threads() == before[1]:
    time.sleep(0.01)
time.sleep(0.1)
asleep = cost()
until.set()
while threads() > before[1]:
    time.sleep(0.01)
print(json.dumps({"spinning": before[0], "asleep": asleep, "again": cost()}))
"""


@pytest.mark.skipif(CORES < 2, reason="on one core threads do not spin")
def test_threads_that_wait_asleep_leave_the_cores_to_others_until_they_spin_again() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "INFINITY"}  # all of a pause, on a busy machine, too
    done = subprocess.run(
        [sys.executable, "-c", WAITING], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    cost = json.loads(done.stdout)
    assert cost["asleep"] < cost["spinning"] / 3
    assert cost["asleep"] < cost["again"] / 3


def test_threads_sleep_while_a_core_for_one_of_them_is_missing() -> None:
    found = Neighbours(CORES)
    seen = []
    for others in (0.1, 0.4, 1.0, 0.4, 0.1, 2.0, 0.0):
        found.decide(others)
        seen.append(found.crowded)
    assert seen == [False, False, True, True, False, True, False]


def test_cores_that_nobody_needs_may_be_busy() -> None:
    found = Neighbours(CORES)
    found._cores = set(range(CORES + 3))
    found.decide(3.0)
    assert not found.crowded
    found.decide(4.0)
    assert found.crowded
    found.decide(0)


def stat(user: int, idle: int = 0, disk: int = 0, guest: int = 0, elsewhere: int = 0) -> str:
    """The first lines of /proc/stat; every core that may be used has these hundredths of a second."""
    fields = f"{user} 0 0 {idle} {disk} 0 0 0 {guest} 0"
    mine = sorted(os.sched_getaffinity(0))
    lines = [
        f"cpu {fields}",
        *(f"cpu{core} {fields}" for core in mine),
        f"cpu{mine[-1] + 1} {elsewhere} 0 0 0 0 0 0 0 0 0",
    ]
    return "\n".join([*lines, "intr 1 2 3", "ctxt 5"]) + "\n"


@pytest.mark.parametrize(
    ("later", "crowded"),
    [
        (stat(10**6), True),
        (stat(0, idle=10**6), False),
        (stat(0, disk=10**6), False),
        (stat(0, guest=10**6), False),
        (stat(0, elsewhere=10**6), False),
    ],
    ids=["computing", "idle", "waiting for a disk", "guests, counted twice", "on cores that are not ours"],
)
def test_what_others_compute_is_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str, crowded: bool
) -> None:
    file = tmp_path / "stat"
    file.write_text(stat(0))
    monkeypatch.setattr(neighbours, "_STAT", file)
    # One thread more than cores would always be crowded, one core more than threads never.
    found = Neighbours(max(CORES, 2))
    found._cores = set(range(max(CORES, 2))) | found._cores
    file.write_text(later)
    found.look()
    assert found.crowded is crowded
    found.decide(0)


def test_beside_busy_processes_threads_sleep() -> None:
    found = Neighbours(max(CORES, 2))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        end = time.monotonic() + 60
        while not found.crowded and time.monotonic() < end:
            time.sleep(0.2)
            found.look()
        assert found.crowded
    finally:
        for process in busy:
            process.kill()
            process.wait()
        found.decide(-1)


def test_one_thread_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "stat"
    file.write_text(stat(0))
    monkeypatch.setattr(neighbours, "_STAT", file)
    found = Neighbours(1)
    file.write_text(stat(10**6))
    found.look()
    assert not found.crowded


def test_a_system_that_does_not_tell_has_no_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_STAT", tmp_path / "missing")
    found = Neighbours(CORES + 1)
    found.look()
    assert not found.crowded
