"""A fuzzing campaign: `make fuzz`, or `PYTHONPATH=tests python -m fuzz [--cases 120000] [--target config]`.

Each target runs in a process of its own. Where atheris is installed, coverage guides it: a case that reaches new code
is kept in build/fuzz/corpus/TARGET, and later cases are made from it, half of them by the mutations that know the
format. Without atheris every case is such a mutation. A find is written to build/fuzz/finds, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutation import mutated

# Where files cost no disk.
_MEMORY = Path("/dev/shm")
BUILD = Path("build") / "fuzz"
# Thousandths of the cases: what has more to parse has more of them.
SHARES = {
    "config": 110, "directory": 60, "overrides": 60, "chat": 80, "separated": 30, "metrics": 110, "state": 110,
    "samples": 60, "trainer": 60, "cookbook": 60, "checkpoint": 60, "served": 20, "wire": 120, "strangers": 60,
}  # fmt: skip
_MAX_LENGTH = 4096  # bytes of a case
_UNGUIDED = ("strangers",)  # what is reached runs in a process of its own


class Campaign:
    """Counts the cases of one target, and notes each kind of find once; `settle` is called after the last."""

    def __init__(self, name: str, case: Callable[[bytes], None], settle: Callable[[], None], cases: int) -> None:
        self.name, self._case, self._settle, self._wanted = name, case, settle, cases
        self.done = 0
        self.finds: set[str] = set()
        self._began = time.monotonic()

    def attempt(self, document: bytes) -> None:
        """Run one case; whatever it raises is a find."""
        self._try(lambda: self._case(document), document)
        self.done += 1
        if self.done == self._wanted:
            self._try(self._settle, document)
            self.report()

    def _try(self, action: Callable[[], None], document: bytes) -> None:
        try:
            action()
        except Exception as error:
            self._note(getattr(error, "document", document), error)

    def _note(self, document: bytes, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
        if kind in self.finds:
            return
        self.finds.add(kind)
        (BUILD / "finds").mkdir(parents=True, exist_ok=True)
        file = BUILD / "finds" / f"{self.name}-{zlib.crc32(document):08x}"
        file.write_bytes(document)
        print(f"{self.name}: {kind}: {str(error)[:500]} (the case is in {file})", flush=True)
        traceback.print_exception(error, limit=-6)

    def report(self) -> None:
        """The figures, as the last word of this process: the fuzzer's engine has no way back."""
        seconds, peak = time.monotonic() - self._began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{self.name}: {self.done:,} cases, {len(self.finds)} finds, {seconds:.0f} s, {peak} MB", flush=True)
        sys.stderr.flush()
        os._exit(1 if self.finds else 0)


def fuzz(name: str, cases: int, seed: int) -> None:
    """Run one target; ends the process."""
    guided = name not in _UNGUIDED and importlib.util.find_spec("atheris")
    atheris: Any = importlib.import_module("atheris") if guided else None
    with atheris.instrument_imports(include=["tinker_utils"]) if atheris else contextlib.nullcontext():
        case, settle, documents = _target(name)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # of what is drawn with absurd values
    campaign = Campaign(name, case, settle, cases)
    if atheris is None:
        rng = Random(seed)
        while True:
            campaign.attempt(mutated(documents, rng)[:_MAX_LENGTH])

    def mutate(data: bytes, longest: int, own_seed: int) -> bytes:
        rng = Random(own_seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        return mutated([data, data, rng.choice(documents)], rng)[:longest]

    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, document in enumerate(documents):
        (corpus / f"seed-{number}").write_bytes(document)
    options = [f"-seed={seed}", f"-max_len={_MAX_LENGTH}", "-verbosity=0", "-timeout=60", "-rss_limit_mb=6000"]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={BUILD}/", str(corpus)], campaign.attempt, custom_mutator=mutate
    )
    atheris.Fuzz()


def _target(name: str) -> tuple[Callable[[bytes], None], Callable[[], None], list[bytes]]:
    """Return what runs a case, what is done after the last, and the valid documents."""
    directory = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    if name == "strangers":
        from fuzz import strangers

        server = strangers.Strangers(directory)
        return server.case, server.settle, strangers.corpus()
    if name == "wire":
        from fuzz import wire

        return wire.Wire(directory).case, lambda: None, wire.corpus()
    from fuzz import files

    target = files.TARGETS[name]
    return lambda document: target(directory, document), lambda: None, files.corpus(name)


def _run_all(options: argparse.Namespace, folder: str) -> list[int]:
    """Run the targets, each with its temporary files in a folder; returns how each ended."""
    waiting = sorted(SHARES, key=lambda name: -SHARES[name])
    running: list[subprocess.Popen[bytes]] = []
    codes: list[int] = []
    environment = {**os.environ, "TMPDIR": folder}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            cases = options.cases * SHARES[name] // 1000 + 1
            command = [sys.executable, "-m", "fuzz", "--target", name, "--cases", str(cases), "--seed"]
            command += [str(options.seed)]
            running.append(subprocess.Popen(command, stderr=subprocess.STDOUT, env=environment))
        time.sleep(0.2)
        codes += [process.returncode for process in running if process.poll() is not None]
        running = [process for process in running if process.returncode is None]
    return codes


def main() -> int:
    """Run the targets, two at a time, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Feed the readers and the server with damage.")
    parser.add_argument("--cases", type=int, default=120_000)
    parser.add_argument("--target", choices=SHARES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.target:
        fuzz(options.target, options.cases, options.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        codes = _run_all(options, folder)
    guided = "guided by coverage" if importlib.util.find_spec("atheris") else "without atheris, not guided by coverage"
    print(f"all: {options.cases:,} cases, {guided}; {sum(code != 0 for code in codes)} of {len(codes)} targets failed")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
