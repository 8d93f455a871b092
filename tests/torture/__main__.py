"""`python -m torture`: kill training runs many times, and write down what came of it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from torture import report
from torture.campaign import Tormentor
from torture.disk_faults import Fault, build
from torture.preloaded import PreloadedPython
from torture.trial import Trial

_REPORT = Path(__file__).parents[2] / "docs" / "torture.md"

_SYSTEMATIC = (
    ("every", "Killed at every {}. change of a file, before it and amidst it", (Fault.KILL_BEFORE, Fault.KILL_AMIDST)),
    (
        "refuse",
        "A disk that is full, read-only or gone from every {}. change of a file on",
        (Fault.DISK_FULL, Fault.READ_ONLY, Fault.VANISHED),
    ),
    ("cut", "The power cut at every {}. change of a file", (Fault.POWER_CUT,)),
)


def main() -> int:
    """Torture, print a line a run, write the report; the exit status says whether all went well."""
    options = _parser().parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    # What trying a server takes is no part of a run: the ledgers would not agree.
    os.environ["TINKER_UTILS_PROBE"] = "0"
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        environment = {"LD_PRELOAD": str(build(folder)), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with PreloadedPython(environment) as python:
            tormentor = Tormentor(python, folder, options.seed, _tell)
            campaigns = []
            if options.kills:
                trials = tormentor.random(options.kills)
                campaigns.append(report.Campaign(options.seed, "Victims and moments drawn at random", trials))
            for option, choice, faults in _SYSTEMATIC:
                if stride := getattr(options, option):
                    trials = tormentor.every_change(stride, faults)
                    campaigns.append(report.Campaign(options.seed, choice.format(stride), trials))
    report.write(options.report, campaigns, time.monotonic() - began)
    print(f"written: {options.report}")
    return int(any(trial.problems for campaign in campaigns for trial in campaign.trials))


def _tell(trial: Trial) -> None:
    done = f"{len(trial.kills)} kills, {trial.resumes} resumes, {trial.fallbacks} checkpoints lost"
    done += f", {trial.jumps} jumps of the clock"
    print(f"run {trial.name}: {done}, {len(trial.problems)} mismatches", flush=True)
    for problem in trial.problems:
        print(f"    {problem}\n    after {trial.kills}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills drawn at random")
    parser.add_argument("--every", type=int, default=0, metavar="N", help="kill at every N-th change of a file, too")
    parser.add_argument("--refuse", type=int, default=0, metavar="N", help="fail at every N-th change of a file, too")
    parser.add_argument("--cut", type=int, default=0, metavar="N", help="cut the power at every N-th change, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=_REPORT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
