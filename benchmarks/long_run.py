"""`python benchmarks/long_run.py`: a run of thousands of steps, and what it takes of memory, handles, threads and disk.

The trainer is this process, the server the one that `service: local` starts. Both are looked at in /proc as it goes on:
resident memory, open files, threads. After the warm-up (a fifth of the run) a line is fitted to the memory by least
squares: its slope is what leaks, in kB per 1,000 steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.run.directory import RunDirectory
from tinker_utils.service.client import connect
from tinker_utils.training.start import fit_blocking

_LOOKS = 100
_WARM_UP = 0.2
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass
class Watched:
    """A process, and what was seen of it: the step, kB resident, open files, threads."""

    name: str
    pid: int
    seen: list[tuple[int, int, int, int]] = field(default_factory=list)

    def look(self, step: int) -> None:
        """Note how it stands after a step."""
        process = Path(f"/proc/{self.pid}")
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
        files, threads = (sum(1 for _ in (process / kind).iterdir()) for kind in ("fd", "task"))
        self.seen.append((step, pages * os.sysconf("SC_PAGE_SIZE") // 1024, files, threads))

    @property
    def settled(self) -> list[tuple[int, int, int, int]]:
        """Return what was seen after the warm-up."""
        return [each for each in self.seen if each[0] > _WARM_UP * self.seen[-1][0]]

    @property
    def slope(self) -> float:
        """kB per 1,000 steps after the warm-up, by least squares."""
        steps, memory, _, _ = np.array(self.settled, dtype=np.float64).T
        return float(np.polyfit(steps, memory, 1)[0] * 1000)


def train(steps: int, folder: Path) -> tuple[list[Watched], RunDirectory, float]:
    """Train for so many steps, with 50 evaluations and 10 periodic checkpoints; seconds it took."""
    config = TrainingConfig(
        service="local",
        model="tiny",
        lora=LoraConfig(rank=2),
        epochs=steps // len(_WORDS) + 1,
        batch_size=1,
        learning_rate=1e-4,
        log_interval_steps=max(steps // _LOOKS, 1),
        eval_interval_steps=max(steps // 50, 1),
        eval_at_epoch_end=False,
        checkpoint_interval_steps=max(steps // 10, 1),
        checkpoint_ttl_seconds=3600,
        data_dir=_data(folder / "data"),
    )
    run = RunDirectory(folder / "run")
    with connect(config, run.local_store) as service:
        server = service.embedded_pid
        assert server is not None
        watched = [Watched("trainer", os.getpid()), Watched("server", server)]

        def look(record: dict[str, object]) -> None:
            if record["type"] == "train":
                gc.collect()
                for each in watched:
                    each.look(int(str(record["step"])))

        began = time.monotonic()
        fit_blocking(config, run.path, service=service, on_record=look)
    return watched, run, time.monotonic() - began


def table(watched: list[Watched], run: RunDirectory, seconds: float) -> str:
    """Return what was seen, in Markdown."""
    steps = watched[0].seen[-1][0]
    lines = [
        f"{steps} steps in {seconds:.0f} s; warm-up: the first {_WARM_UP:.0%}.",
        "",
        "| process | MB after warm-up | MB at the end | kB per 1,000 steps | open files | threads |",
        "|---|---|---|---|---|---|",
    ]
    for each in watched:
        first, last = each.settled[0], each.settled[-1]
        files, threads = ({look[column] for look in each.settled} for column in (2, 3))
        lines.append(
            f"| {each.name} | {first[1] / 1024:.1f} | {last[1] / 1024:.1f} | {each.slope:+.0f} "
            f"| {min(files)} to {max(files)} | {min(threads)} to {max(threads)} |"
        )
    stored = sorted(path.name.partition("~")[0] for path in (run.local_store / "runs").glob("*/*/*"))
    size = sum(file.stat().st_size for file in run.local_store.rglob("*") if file.is_file())
    return "\n".join([*lines, "", f"In the store: {', '.join(stored)}; {size / 1e6:.1f} MB.", ""])


def _data(folder: Path) -> Path:
    folder.mkdir()
    for name, words in (("train", _WORDS), ("valid", _WORDS[:2])):
        rows = [
            {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]}
            for word in words
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def main() -> int:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(table(*train(options.steps, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
