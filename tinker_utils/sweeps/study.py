"""Several settings × several seeds, trained side by side, and what the differences come to."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinker_utils.batching import Batch, in_batches
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.sources.naming import TEST_FILE, data_file
from tinker_utils.data.streaming import RenderedFile, render_all
from tinker_utils.errors import TinkerUtilsError
from tinker_utils.loss import t975
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.directory import RunDirectory, run_path
from tinker_utils.run.metrics import read_metrics
from tinker_utils.run.series import MetricsLog
from tinker_utils.service.client import Service
from tinker_utils.training.resuming import resume_points
from tinker_utils.training.start import fit, open_service

_TESTED_TOGETHER = 256  # examples in one request, far below the protocol's 1,024
# The 97.5% quantile of Student's t where the series of `t975` is not exact enough, from the tables.
_T975_OF_FEW = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
_Planned = tuple[int, str]  # a run's seed and variant


@dataclass(frozen=True)
class StudyEvaluation:
    """One evaluation of a run: its loss in nats per completion token, and the tokens trained on until then."""

    step: int
    val_loss: float
    tokens: int


@dataclass(frozen=True)
class StudyRun:
    """One variant at one seed.

    Attributes:
        may_stop: whether early stopping was on.
        evaluations: those on valid.jsonl, in their order.
        test_best: loss on test.jsonl of the weights of the lowest validation loss, in nats per completion token.
        test_last: that of the last weights.
    """

    variant: str
    seed: int
    may_stop: bool
    evaluations: tuple[StudyEvaluation, ...]
    test_best: float
    test_last: float

    @property
    def last(self) -> StudyEvaluation:
        """Return the evaluation that the run ended with."""
        return self.evaluations[-1]

    @property
    def test_loss(self) -> float:
        """Return the test loss of the weights handed over: the best of a run that may stop early, else the last."""
        return self.test_best if self.may_stop else self.test_last


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the width of its two-sided 95% interval: NaN for a single seed.

    The half width is t · s / sqrt(n), with t the 97.5% quantile of Student's t for n - 1 degrees of freedom: the
    interval of normal values, which a mean over few seeds needs wider than 1.96 standard errors.
    """

    mean: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from one value a seed."""
        n = len(values)
        if n == 1:
            return cls(values[0], math.nan)
        t = _T975_OF_FEW.get(n - 1) or t975(n - 1)
        return cls(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(n))

    @property
    def verdict(self) -> str:
        """Return `lower` or `higher` where the interval of a difference leaves out 0, otherwise `not told apart`."""
        if abs(self.mean) > self.margin:
            return "lower" if self.mean < 0 else "higher"
        return "not told apart"

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.margin:.3f}"


async def run_study(
    variants: Mapping[str, TrainingConfig],
    seeds: Sequence[int],
    output_dir: Path | str,
    *,
    at_once: int = 1,
    on_run: Callable[[StudyRun], object] | None = None,
) -> list[StudyRun]:
    """Train each variant at each seed, all on the service and the base model of the first.

    Runs that have ended in `output_dir` are read instead of repeated, and one that was stopped is gone on with. Each
    run's best and last weights are then evaluated on test.jsonl beside its training data, which neither the run nor
    its early stopping sees; that is not counted in the run's cost.

    Args:
        variants: name → configuration; its seed is replaced.
        seeds: of order, initial adapter and dropout.
        output_dir: each run is written to VARIANT/seed-N below it.
        at_once: runs to train side by side, each over its own connection: as many as cores, for small models.
        on_run: called after each run.

    Raises:
        TinkerUtilsError: a run was stopped or failed. Those beside it are stopped, too, and everything is saved.
        DataError: there is no test.jsonl beside a run's training data.
    """
    if at_once < 1:
        raise TinkerUtilsError(
            f"at_once: expected at least 1, received {at_once}; give how many runs train side by side."
        )
    directory = run_path(output_dir)
    planned = [(seed, name) for seed in seeds for name in variants]
    done: dict[_Planned, StudyRun] = {}
    left = _dealt(planned, variants, directory)
    places = range(min(at_once, len(planned)))
    stores = dict.fromkeys([*filter(None, left), *(directory / f"checkpoints-{number}" for number in places)])
    free = asyncio.Semaphore(at_once)

    async def train(store: Path) -> None:
        async with free:
            if not (left[store] or left[None]):
                return
            async with open_service(next(iter(variants.values())), store) as service:
                while runs := left[store] or left[None]:
                    seed, name = runs.popleft()
                    done[seed, name] = await _trained(_directory(directory, name, seed), name, seed, variants, service)
                    await asyncio.to_thread(service.renew)  # a session holds its models to its end
                    if on_run is not None:
                        on_run(done[seed, name])

    try:
        async with asyncio.TaskGroup() as group:
            for store in stores:
                group.create_task(train(store))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [done[key] for key in planned]


def _directory(study: Path, name: str, seed: int) -> RunDirectory:
    return RunDirectory(study / name.replace("/", "-") / f"seed-{seed}")


def _dealt(
    planned: Sequence[_Planned], variants: Mapping[str, TrainingConfig], study: Path
) -> defaultdict[Path | None, deque[_Planned]]:
    """Return the runs that go on where their checkpoints are, by that store; under None those that train anywhere."""
    dealt: defaultdict[Path | None, deque[_Planned]] = defaultdict(deque)
    stores = sorted(study.glob("checkpoints-*"))
    for seed, name in planned:
        goes_on = variants[name].resume_from_checkpoint
        store = _store_of(_directory(study, name, seed), stores) if goes_on else None
        dealt[store].append((seed, name))
    return dealt


def _store_of(run: RunDirectory, stores: Sequence[Path]) -> Path | None:
    """Return where the embedded service keeps the checkpoints of a run, the latest that are left; None if nowhere."""
    from tinker_utils.local.launcher import holds_run

    paths = [point.path for point in resume_points(run.read_state()) if point.path]
    return next((store for path in paths for store in stores if holds_run(store, path)), None)


async def _trained(
    run: RunDirectory, name: str, seed: int, variants: Mapping[str, TrainingConfig], service: Service
) -> StudyRun:
    config = dataclasses.replace(variants[name], seed=seed).resolved()
    plan = await asyncio.to_thread(prepare, config)
    tests = _test_batches(plan)  # before anything is spent, should the file be missing
    result = await fit(config, run.path, service=service, preparation=plan)
    if result.status == "stopped":
        raise TinkerUtilsError(f"{run.path}: was stopped ({result.reason}); run the study again to resume it.")
    if result.status == "failed":
        raise TinkerUtilsError(f"{run.path}: failed, so the study has no result for it: {result.reason}")
    best, last = result.best_checkpoint, resume_points(run.read_state())[0].path
    losses: dict[str | None, float] = {
        path: await asyncio.to_thread(_loss_at, path, tests, config, service) for path in {best, last} if path
    }
    evaluations, may_stop = evaluations_of(read_metrics(run.metrics)), config.early_stopping_patience > 0
    return StudyRun(name, seed, may_stop, evaluations, losses.get(best, math.nan), losses.get(last, math.nan))


def _test_batches(plan: Plan) -> list[Batch]:
    """Return the examples of test.jsonl beside the training data; raises DataError where there is none."""
    config = plan.config
    file = data_file(config.data_dir, TEST_FILE)
    chats = ChatIndex(file, plan.renderer.answers, config.max_skipped_share, plan.reader)
    rendered = render_all(RenderedFile(chats, plan.renderer, config.max_seq_length), config.max_skipped_share)
    return list(in_batches(rendered.examples, _TESTED_TOGETHER))


def _loss_at(checkpoint: str, batches: Sequence[Batch], config: TrainingConfig, service: Service) -> float:
    """Return the loss of a checkpoint's weights in nats per completion token, pooled over the batches."""
    losses = service.restored_model(checkpoint, config).submit_evaluation(batches).result()
    return sum(loss.total for loss in losses) / sum(batch.completion_tokens for batch in batches)


def evaluations_of(log: MetricsLog) -> tuple[StudyEvaluation, ...]:
    """Return a run's evaluations, each with the tokens of the train records up to it."""
    steps, tokens = log.train["step"], [0, *log.train["tokens_seen"]]
    return tuple(
        StudyEvaluation(
            int(record["step"]),
            math.nan if record["val_loss"] is None else float(record["val_loss"]),
            int(tokens[np.searchsorted(steps, record["step"], side="right")]),
        )
        for record in log.val
        if record["step"] > 0  # before it is the base model
    )


def estimate(runs: Sequence[StudyRun], variant: str, measure: Callable[[StudyRun], float]) -> Estimate:
    """Return a measure's mean over the seeds of one variant."""
    return Estimate.of([measure(run) for run in runs if run.variant == variant])


def difference(runs: Sequence[StudyRun], variant: str, baseline: str, measure: Callable[[StudyRun], float]) -> Estimate:
    """Return a measure's mean difference from the baseline, paired by seed: what the seeds share cancels out."""
    shared = {run.seed: measure(run) for run in runs if run.variant == baseline}
    own = {run.seed: measure(run) for run in runs if run.variant == variant}
    return Estimate.of([own[seed] - shared[seed] for seed in sorted(own)])
