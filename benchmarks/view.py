"""What the live view takes of a run's wall time, and how soon it shows a run that it is attached to."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import say, table

from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import MetricsWriter
from tinker_utils.run.state import Activity, Planned, RunState

RECORDS = (100, 100_000)
SECONDS, EVALUATE_EVERY = 120.0, 15.0
_WRITER = "--write"


def main() -> None:
    """Print this section of RESULTS.md; with `--write PATH STEP`, add records for a while instead."""
    if sys.argv[1:2] == [_WRITER]:
        add_records(Path(sys.argv[2]), int(sys.argv[3]))
        return
    rows = []
    for records in RECORDS:
        say(f"{records:,} records, {SECONDS:.0f} s")
        with tempfile.TemporaryDirectory() as directory:
            run = running(Path(directory) / "run", records)
            attached, share = asyncio.run(followed(run, records))
        rows.append((f"{records:,}", attached, f"{share:.2%}"))
    print("## The live view: `benchmarks/view.py`\n")
    print(table(("records in the run", "attached after, s", "processor time of wall time"), rows))
    print(
        f"\nA view follows for {SECONDS:.0f} s a run to which another process adds ten records a second, and an"
        f" evaluation every {EVALUATE_EVERY:.0f} s. Its share is all the processor time of its process in that time,"
        " event loop included. Attaching, which is done once, is counted apart: reading all records, drawing the first"
        " picture."
    )


async def followed(run: RunDirectory, records: int) -> tuple[float, float]:
    """(seconds until the run is shown, the view's share of the time while it follows the run)."""
    from tinker_utils.views.live import dashboard

    began = time.perf_counter()
    view = dashboard(run)
    attached = time.perf_counter() - began
    with subprocess.Popen([sys.executable, __file__, _WRITER, str(run.metrics), str(records)]) as writer:
        began, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(SECONDS)
        share = (time.process_time() - used) / (time.perf_counter() - began)
        writer.terminate()
    view.close()
    return attached, share


def running(path: Path, records: int) -> RunDirectory:
    """A run directory that says it is in training."""
    run = RunDirectory(path)
    path.mkdir()
    with run.metrics.open("w", encoding="utf-8") as file:
        for step in range(1, records + 1):
            file.write(json.dumps(train(step)) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps(evaluation(step)) + "\n")
    plan = Planned(total_steps=2 * records, epochs=2, patience=5)
    run.write_state(RunState(activity=Activity("training", 0, "training"), plan=plan))
    return run


def add_records(path: Path, step: int) -> None:
    """Add ten records a second, and an evaluation from time to time."""
    ends, evaluates = time.monotonic() + SECONDS, time.monotonic() + EVALUATE_EVERY
    with MetricsWriter(path) as writer:
        while time.monotonic() < ends:
            step += 1
            writer.write(train(step))
            if time.monotonic() > evaluates:
                writer.write(evaluation(step))
                evaluates += EVALUATE_EVERY
            time.sleep(0.1)


def train(step: int) -> dict[str, object]:
    """A train record."""
    loss = 1 + 10 / (step + 10) + (step * 7919 % 101) / 1000
    return {
        "type": "train", "timestamp": 1.79e9 + step, "step": step, "epoch": 1, "train_loss": loss,
        "train_loss_total": 900 * loss, "tokens_per_sec": 2000.0 + step % 17, "tokens": 2000, "completion_tokens": 900,
        "tokens_seen": 2000 * step, "learning_rate": 1e-4, "cost_usd": step * 1e-6, "grad_norm": 1.0,
    }  # fmt: skip


def evaluation(step: int) -> dict[str, object]:
    """A val record."""
    loss = 1.1 + 10 / (step + 10)
    return {
        "type": "val",
        "step": step,
        "epoch": 1,
        "val_loss": loss,
        "val_loss_total": 9e4 * loss,
        "val_loss_stderr": 0.02,
    }


if __name__ == "__main__":
    main()
