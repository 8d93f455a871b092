from __future__ import annotations

import subprocess
import sys

import pytest

from tinker_utils.basics.threads import in_background


def test_what_a_call_returns_or_raises_is_the_futures():
    assert in_background(lambda: 6 * 7, "sum").result(10) == 42
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0, "nonsense").result(10)


def test_a_call_that_never_returns_does_not_hold_up_the_end_of_the_process():
    program = "import threading; from tinker_utils.basics.threads import in_background\n"
    program += "in_background(threading.Event().wait, 'for ever'); print('left')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "left\n")
