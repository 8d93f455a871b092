"""What a line of spending.jsonl costs that is on the disk before the service is asked, beside one that is not."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from measure import alternate, medians, table

from tinker_utils.run.spending import Spending

# A hosted step takes several cycles' worth of seconds; half a second is the shortest that the benchmarks assume.
STEP_S, LINES, ROUNDS = 0.5, 200, 5


def seconds_a_line(directory: Path, bills: bool) -> float:
    """Write lines as a run does, and return the seconds that each takes."""
    with Spending(directory / "spending.jsonl", bills=bills) as spending:
        began = time.perf_counter()
        for step in range(LINES):
            spending.sent(step, 10_000)
        return (time.perf_counter() - began) / LINES


def main() -> None:
    """Print this section of RESULTS.md."""
    print("## Money on the disk: `benchmarks/spending.py`\n")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:  # the system's own may lie in memory
        sides = {
            "on the disk before it is sent, where a service bills": partial(seconds_a_line, Path(directory), True),
            "left to the system, with `service: local`": partial(seconds_a_line, Path(directory), False),
        }
        seconds = medians(alternate(sides, ROUNDS))
    header = ("a line of spending.jsonl", "ms", f"% of a step of {STEP_S:g} s")
    print(table(header, [(side, each * 1e3, each / STEP_S * 100) for side, each in seconds.items()]))
    print("\nA step writes one line, and so does an evaluation, which takes longer than a step.")


if __name__ == "__main__":
    main()
