"""Runs the named benchmarks in turn, and writes their sections to RESULTS.md with machine, versions and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("tinker", "torch", "transformers", "peft", "numpy")


def main(names: list[str]) -> int:
    """Run `benchmarks/NAME.py` for each name; the status is 1 if one of them failed, whose section then says so."""
    sections, failed = [heading()], False
    for name in names:
        print(f"--- {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True)
        failed |= done.returncode != 0
        sections.append(done.stdout.strip() or f"## {name}\n\nIt printed nothing.")
        if done.returncode:
            sections.append(f"**`{name}.py` failed with status {done.returncode}.**")
    (HERE / "RESULTS.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return int(failed)


def heading() -> str:
    """Title, machine, versions and date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    threads = os.environ.get("OMP_NUM_THREADS", "as many as PyTorch takes")
    return (
        "# Results\n\nWritten by `make bench`.\n\n"
        f"- date: {datetime.datetime.now(datetime.UTC).date()}\n"
        f"- machine: {processor()}, {os.cpu_count()} cores, {memory_gib():.0f} GiB; {threads} threads\n"
        f"- Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> float:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
