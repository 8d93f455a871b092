"""What several threads do first at the same time: a view, an export and a run, or requests to the server's store."""

from __future__ import annotations

import subprocess
import sys

import pytest

AT_ONCE = """
import contextlib, sys, threading
sys.setswitchinterval(1e-6)
{imports}
STATE = b'{{"format": 2, "progress": {{"step": 1}}, "resume_points": [{{"path": "x", "progress": {{"step": 1}}}}]}}'
CHECKPOINT = {{"reference": {{"run_id": "x", "kind": "weights", "name": "x"}}, "created": 1.0, "lora": {{"rank": 2}}}}
barrier = threading.Barrier(4)
def decode():
    barrier.wait()
    with contextlib.suppress(Exception):
        {decode}
threads = [threading.Thread(target=decode) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize(
    ("imports", "decode"),
    [
        ("from pathlib import Path\nfrom tinker_utils.run.state import decode_state", "decode_state(STATE, Path('x'))"),
        ("from tinker_utils.local.store.checkpoint import CheckpointInfo", "CheckpointInfo.from_json(CHECKPOINT)"),
    ],
    ids=["a run's state", "a checkpoint"],
)
def test_a_type_that_threads_decode_first_at_the_same_time_is_decoded(imports, decode):
    """Where msgspec looks at it in two threads at once, the process ends by SIGSEGV, more often than not."""
    program = AT_ONCE.format(imports=imports, decode=decode)
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", program]).returncode == 0
