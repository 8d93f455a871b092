"""How long one waits before anything happens: importing the package, starting the embedded service, `make train`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import alternate, medians, say, table

from tinker_utils.local import start_local_service

ROOT = Path(__file__).parents[1]

NOTE = """\
Seconds, medians of alternating rounds, each in a fresh process. *import tinker_utils* is timed inside of it. *embedded
service* is from starting the process to its line with the address, on the packaged model; its peer is a process that
imports PyTorch, transformers and peft and ends. `make train` is a second one: everything is installed."""


def import_package() -> float:
    """Seconds of `import tinker_utils`, as the interpreter that does it counts them."""
    program = "import time; began = time.perf_counter(); import tinker_utils; print(time.perf_counter() - began)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def import_frameworks() -> float:
    """Seconds of a process that imports what the service is made of."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers, peft"], check=True)
    return time.perf_counter() - began


def start_service() -> float:
    """Seconds until the embedded service can be used."""
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        with start_local_service("tiny", Path(directory) / "store"):
            return time.perf_counter() - began


def make_train() -> float:
    """Seconds of `make train`."""
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        subprocess.run(["make", "train", f"RUN={directory}/run"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> int:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-make", action="store_true", help="leave out make train, which wants .venv")
    options = parser.parse_args()
    contestants = {"import": import_package, "frameworks": import_frameworks, "service": start_service}
    for contestant in contestants.values():
        contestant()  # from the disk into memory
    found = medians(alternate(contestants, options.rounds))
    rows = [
        ["import tinker_utils", found["import"], "", "at most 0.15"],
        ["import torch, transformers, peft", found["frameworks"], "", ""],
        ["embedded service", found["service"], found["service"] - found["frameworks"], "at most 2 beyond the imports"],
    ]
    if not options.without_make:
        say("make train")
        rows.append(["make train, again", make_train(), "", "at most 60"])
    print(f"## Start\n\n{NOTE}\n\n{table(['', 'seconds', 'beyond the imports', 'wanted'], rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
