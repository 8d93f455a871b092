"""Several settings × several seeds, trained side by side on one service, and what the differences come to."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinker_utils.config import TrainingConfig
from tinker_utils.metrics import MetricsLog, read_metrics
from tinker_utils.result import TrainingResult
from tinker_utils.rundir import RunDirectory
from tinker_utils.service import Service
from tinker_utils.training import fit


@dataclass(frozen=True)
class StudyRun:
    """One variant at one seed; `may_stop` says whether early stopping was on."""

    variant: str
    seed: int
    may_stop: bool
    result: TrainingResult
    log: MetricsLog

    @property
    def final_val_loss(self) -> float:
        """The last evaluation, in nats per completion token: what a run without a kept best ends with."""
        return float(self.log.val[-1]["val_loss"])

    @property
    def kept_val_loss(self) -> float:
        """The loss of the weights handed over: the best ones by a run that may stop early, the last ones otherwise."""
        best = self.result.best_val_loss
        return best if self.may_stop and best is not None else self.final_val_loss


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, s / sqrt(n); the error is NaN for a single seed."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value a seed."""
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), spread)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.stderr:.3f}"


async def run_study(
    variants: Mapping[str, TrainingConfig],
    seeds: Sequence[int],
    output_dir: Path | str,
    service: Service,
    on_run: Callable[[StudyRun], object] | None = None,
) -> list[StudyRun]:
    """Train each variant at each seed on an open service, one after the other.

    Runs that have ended in `output_dir` are read instead of repeated.

    Args:
        variants: name → configuration; its seed is replaced.
        seeds: of order, initial adapter and dropout.
        output_dir: each run is written to VARIANT/seed-N below it.
        service: an open connection that serves all the variants' base model.
        on_run: called after each run.
    """
    runs = []
    for seed in seeds:
        for name, config in variants.items():
            directory = Path(output_dir) / name.replace("/", "-") / f"seed-{seed}"
            result = await fit(dataclasses.replace(config, seed=seed), directory, service=service)
            log = read_metrics(RunDirectory(directory).metrics)
            runs.append(StudyRun(name, seed, config.early_stopping_patience > 0, result, log))
            if on_run is not None:
                on_run(runs[-1])
    return runs


def estimate(runs: Sequence[StudyRun], variant: str, measure: Callable[[StudyRun], float]) -> Estimate:
    """A measure's mean over the seeds of one variant."""
    return Estimate.of([measure(run) for run in runs if run.variant == variant])


def difference(runs: Sequence[StudyRun], variant: str, baseline: str, measure: Callable[[StudyRun], float]) -> Estimate:
    """A measure's mean difference from the baseline, paired by seed: what the seeds share cancels out."""
    of_seed: dict[str, dict[int, float]] = {variant: {}, baseline: {}}
    for run in runs:
        if run.variant in of_seed:
            of_seed[run.variant][run.seed] = measure(run)
    return Estimate.of([of_seed[variant][seed] - of_seed[baseline][seed] for seed in sorted(of_seed[variant])])
