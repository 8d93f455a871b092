"""What is freed serves again, instead of being given back to the system and asked for anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

PIECES, PIECE_BYTES, ROUNDS, PAGE_BYTES = 2, 24 << 20, 2, 4096
PROGRAM = f"""
import resource, sys
from tinker_utils.local.server.serve import keep_freed

if sys.argv[1] == "keep":
    keep_freed()

def work():
    pieces = [bytearray({PIECE_BYTES}) for _ in range({PIECES})]

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone is told")
def test_freed_memory_serves_again():
    pages = ROUNDS * PIECES * PIECE_BYTES // PAGE_BYTES
    assert page_faults("as it is") > pages / 2
    assert page_faults("keep") < pages / 100
