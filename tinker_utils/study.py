"""Several settings × several seeds, trained side by side on one service, and what the differences come to."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinker_utils.config import TrainingConfig
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.metrics import MetricsLog, read_metrics
from tinker_utils.rundir import RunDirectory
from tinker_utils.service import Service
from tinker_utils.training import fit


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its loss in nats per completion token, and the tokens trained on until then."""

    step: int
    epoch: int
    val_loss: float
    tokens: int


@dataclass(frozen=True)
class StudyRun:
    """One variant at one seed, as its evaluations tell it; `may_stop` says whether early stopping was on."""

    variant: str
    seed: int
    may_stop: bool
    evaluations: tuple[Evaluation, ...]

    @property
    def last(self) -> Evaluation:
        """The evaluation that the run ended with."""
        return self.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The evaluation of the lowest loss."""
        return min(self.evaluations, key=lambda evaluation: evaluation.val_loss)

    @property
    def kept(self) -> Evaluation:
        """That of the weights handed over: the best ones by a run that may stop early, the last ones otherwise."""
        return self.best if self.may_stop else self.last

    def replayed(
        self, variant: str, *, epochs: int | None = None, patience: int = 0, threshold: float = 0.01
    ) -> StudyRun:
        """What the run would have been, had it ended after `epochs`, or by early stopping.

        Neither touches what comes before the end, so this is the very run that those settings would have given, as
        long as the learning rate does not depend on the planned length (constant, without a warm-up).
        """
        stopper = EarlyStopping(patience, threshold)
        seen = []
        for evaluation in self.evaluations:
            if epochs is not None and evaluation.epoch > epochs:
                break
            seen.append(evaluation)
            if stopper.update(evaluation.val_loss, evaluation.step).stop:
                break
        return StudyRun(variant, self.seed, patience > 0, tuple(seen))


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
            await fit(dataclasses.replace(config, seed=seed), directory, service=service)
            evaluations = evaluations_of(read_metrics(RunDirectory(directory).metrics))
            runs.append(StudyRun(name, seed, config.early_stopping_patience > 0, evaluations))
            if on_run is not None:
                on_run(runs[-1])
    return runs


def evaluations_of(log: MetricsLog) -> tuple[Evaluation, ...]:
    """A run's evaluations, each with the tokens of the train records up to it."""
    steps, tokens = log.train["step"], log.train["tokens_seen"]
    return tuple(
        Evaluation(
            int(record["step"]),
            int(record["epoch"]),
            math.nan if record["val_loss"] is None else float(record["val_loss"]),
            int(tokens[np.searchsorted(steps, record["step"], side="right") - 1]),
        )
        for record in log.val
    )


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
