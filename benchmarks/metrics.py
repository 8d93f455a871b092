"""A metrics.jsonl of a million records, read and drawn: beside the standard library's decoder and a plain plot."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import alternate, medians, say, table

RECORDS, ROUNDS = 1_000_000, 3


def main() -> None:
    """Print this section of RESULTS.md; with a side and a path as arguments, measure that side instead."""
    if len(sys.argv) > 1:
        print(json.dumps(SIDES[sys.argv[1]](Path(sys.argv[2]))))
        return
    peaks: dict[str, float] = {}

    def measure(side: str) -> float:
        done = subprocess.run([sys.executable, __file__, side, str(path)], stdout=subprocess.PIPE, check=True)
        seconds, peaks[side] = json.loads(done.stdout)
        return float(seconds)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "metrics.jsonl"
        say("writing a million records")
        write(path)
        size = path.stat().st_size / 1e6
        seconds = medians(alternate({side: lambda side=side: measure(side) for side in SIDES}, ROUNDS))
    print("## Reading and drawing: `benchmarks/metrics.py`\n")
    header = ("a million records", "read and drawn, s", "peak of memory, MB")
    print(table(header, [(side, seconds[side], peaks[side]) for side in SIDES]))
    print(
        f"\nFrom a file of {size:,.0f} MB to a PNG of 150 dots per inch; imports are not counted."
        " The picture keeps the lowest and the highest value of each of 450 intervals, so no spike is lost."
    )


def project(path: Path) -> tuple[float, float]:
    """(seconds, peak MB) of this project."""
    from tinker_utils.run.metrics import read_metrics
    from tinker_utils.style import curves

    began = time.perf_counter()
    curves.png(curves.figure(read_metrics(path)))
    return time.perf_counter() - began, peak_megabytes()


def plain(path: Path) -> tuple[float, float]:
    """(seconds, peak MB) of `json.loads` for each line, and of a plot of all points."""
    import numpy as np
    from matplotlib.figure import Figure

    began = time.perf_counter()
    with path.open(encoding="utf-8") as file:
        records = map(json.loads, file)
        columns = np.array([(r["step"], r["train_loss"], r["tokens_per_sec"]) for r in records if r["type"] == "train"])
    drawing = Figure(figsize=(9.6, 5.2))
    for axes, values in zip(drawing.subplots(2, 1), columns.T[1:], strict=True):
        axes.plot(columns[:, 0], values)
    drawing.savefig(os.devnull, format="png", dpi=150)
    return time.perf_counter() - began, peak_megabytes()


SIDES = {"json and matplotlib": plain, "tinker_utils": project}


def write(path: Path) -> None:
    """A million train records with every field that a run writes, and an evaluation every thousand."""
    choose = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, RECORDS + 1):
            loss = choose.random() * 3
            record = {
                "type": "train", "timestamp": 1.79e9 + step, "step": step, "epoch": 1 + step // 100_000,
                "train_loss": loss, "train_loss_total": loss * 900, "tokens_per_sec": round(choose.random() * 3000, 1),
                "tokens": 2000, "completion_tokens": 900, "tokens_seen": 2000 * step,
                "learning_rate": choose.random() * 1e-4, "cost_usd": step * 1e-6, "grad_norm": choose.random(),
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
            if step % 1000 == 0:
                file.write(
                    json.dumps({"type": "val", "step": step, "val_loss": loss, "val_loss_total": loss * 9000}) + "\n"
                )


def peak_megabytes() -> float:
    """The most resident memory that this process has had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
