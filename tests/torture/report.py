"""docs/torture.md: what was done to how many runs, and how many came out different."""

from __future__ import annotations

import collections
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.kills import VICTIMS
from torture.trial import Trial

_HEAD = """\
# The last torture

Written by `make torture`: runs that are killed and resumed until they end, each compared with a run of the same
settings that nothing disturbed.
"""
_COMPARED = """\
Compared are the records of metrics.jsonl without times and speeds; every batch trained on and every learning rate, from
a ledger that the server keeps; early stopping's state; the counters; the bytes of the best adapter and of the last
optimizer; the samples; and the checkpoints left in the store. One history: no step twice, none missing, no torn line,
one `resume` record a resume. Money: no token that the server computed is missing in what run.json says was spent."""


@dataclass(frozen=True)
class Campaign:
    """A campaign that has ended: its seed, how its kills were chosen, and its trials."""

    seed: int
    choice: str
    trials: Sequence[Trial]


def write(path: Path, campaigns: Sequence[Campaign], seconds: float) -> None:
    """Replace the report by these campaigns'."""
    trials = [trial for campaign in campaigns for trial in campaign.trials]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tinker", "torch", "peft"))
    lines = [
        _HEAD,
        f"- {time.strftime('%Y-%m-%d', time.gmtime())}, {platform.system()} on {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}; {seconds / 60:.0f} minutes",
        *(f"- {campaign.choice}, seed {campaign.seed}: {len(campaign.trials)} runs" for campaign in campaigns),
        "",
        *_summary(trials),
        "",
        *_kills(trials),
        "",
        _COMPARED,
    ]
    if problems := [f"- {trial.name}: {problem[:500]}" for trial in trials for problem in trial.problems]:
        lines += ["", "## Mismatches", "", *problems]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _summary(trials: Sequence[Trial]) -> list[str]:
    kills = sum(len(trial.kills) for trial in trials)
    mismatches = sum(bool(trial.problems) for trial in trials)
    return [
        "| runs | kills | resumes | checkpoints lost, fallen back from | jumps of the clock | mismatches |",
        "|---|---|---|---|---|---|",
        f"| {len(trials)} | {kills} | {sum(trial.resumes for trial in trials)} "
        f"| {sum(trial.fallbacks for trial in trials)} | {sum(trial.jumps for trial in trials)} | {mismatches} |",
    ]


def _kills(trials: Sequence[Trial]) -> list[str]:
    counts = collections.Counter((kill.moment, kill.victim) for trial in trials for kill in trial.kills)
    moments = sorted({moment for moment, _ in counts}, key=lambda moment: (moment != "any moment", moment))
    return [
        _row(["moment", *VICTIMS]),
        "|---" * (len(VICTIMS) + 1) + "|",
        *(_row([moment, *(counts[moment, victim] or "" for victim in VICTIMS)]) for moment in moments),
        _row(["all", *(sum(counts[moment, victim] for moment in moments) for victim in VICTIMS)]),
    ]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
