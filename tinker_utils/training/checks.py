"""Checks a run before anything is spent: data, adapter, settings, service, steps, cost, disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tinker_utils.basics.table import Table
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.joined import parts_of
from tinker_utils.data.streaming import StreamedSet
from tinker_utils.errors import (
    ConfigError,
    DataError,
    RenderingError,
    ResumeError,
    RunDirectoryError,
    ServiceError,
    TinkerUtilsError,
)
from tinker_utils.plan.adapter_size import about_rank, describe_adapter
from tinker_utils.plan.cautions import (
    about_eval_tokens,
    about_evaluation,
    about_money,
    about_service,
    about_settings,
    refusals,
)
from tinker_utils.plan.cost import prices_for, token_cost
from tinker_utils.plan.plan import Plan
from tinker_utils.run.archive import to_archive
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import RunState, ServerProbe
from tinker_utils.service.client import Service, ask_for_models
from tinker_utils.service.offered import Offer, check_trainable
from tinker_utils.service.probe import MAX_TOKENS, about_server, known_server
from tinker_utils.training.checks_of_data import about_cutting, about_duplicates, first_example
from tinker_utils.training.resuming import changes_to_take_up, has_ended, prepared, resume_points

# What the embedded service stands on, see `local` in pyproject.toml.
_LOCAL_PACKAGES = ("torch", "transformers", "peft", "safetensors", "starlette", "uvicorn")
# Bytes: of a record, in metrics and log; for picture and adapter of a small model; left on a disk that is nearly full.
_RECORD_BYTES, _ROOM, _NEARLY_FULL = 600, 64 << 20, 1 << 30


Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, the verdict, and a sentence; `error` is what a failure would raise."""

    name: str
    status: Verdict
    sentence: str
    error: TinkerUtilsError | None = field(default=None, compare=False, repr=False)

    @classmethod
    def failed(cls, name: str, error: TinkerUtilsError) -> Check:
        """Return a check whose failure is `error`."""
        return cls(name, "fail", str(error), error)


def warn_or_pass(name: str, sentences: Iterable[str], otherwise: str) -> list[Check]:
    """Return a warning for each sentence, or one `ok` that says `otherwise`."""
    return [Check(name, "warn", sentence) for sentence in sentences] or [Check(name, "ok", otherwise)]


@dataclass(frozen=True, repr=False)
class PreflightReport:
    """All checks, in the order in which they were made."""

    checks: tuple[Check, ...]

    @property
    def warnings(self) -> list[str]:
        """Return what to know before starting, one sentence each."""
        return [check.sentence for check in self.checks if check.status == "warn"]

    def raise_for_failures(self) -> None:
        """Raise what keeps the run from starting, if anything does.

        Raises:
            TinkerUtilsError: it cannot. One failure is raised as the error that it is; of several the first gives the
                type, and the message has them all.
        """
        errors = [check.error or TinkerUtilsError(check.sentence) for check in self.checks if check.status == "fail"]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])(" ".join(str(error) for error in errors))

    def __str__(self) -> str:
        return self._table.to_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table._repr_html_()

    @property
    def _table(self) -> Table:
        rows = tuple((check.name, check.status, check.sentence) for check in self.checks)
        return Table(("check", "verdict", "finding"), rows, "Before the run", words=True)


def preflight(
    config: TrainingConfig,
    output_dir: Path | str | None = None,
    *,
    preparation: Plan | None = None,
    service: Service | None = None,
    probe: bool | None = None,
) -> PreflightReport:
    """Look at everything that a run needs, and write nothing of it.

    A server that is neither the embedded nor the hosted one is tried with a small model of its own; what was found is
    kept for a day in one small file beside the runs.

    Args:
        config: what the run is to do.
        output_dir: the run's directory; `config.output_dir` if None.
        preparation: what `prepare(config)` gave, if it was called already.
        service: an open connection, if there is one. Without it the embedded service is not started, only looked for;
            any other is asked what it offers.
        probe: True tries the server in any case, for a few hundred tokens, and also where it was tried today; False
            does not.
    """
    config = config.resolved()
    run = RunDirectory(output_dir or config.output_dir)
    checks: list[Check] = []
    plan = preparation
    try:
        plan = prepared(config, preparation, _state_of(run, config))
    except DataError as error:
        checks.append(Check.failed("data", error))
    except (ConfigError, RenderingError, ServiceError) as error:
        checks.append(Check.failed("tokenizer", error))
    if plan is not None:
        checks += _of_plan(plan)
        checks += _of_run(run, plan)
    checks += check_start(config, run, plan, service)
    reachable = all(check.status != "fail" for check in checks if check.name in ("settings", "service"))
    _, probed = probed_server(config, run, service, probe if reachable else False)
    return PreflightReport((*checks, *probed))


def probed_server(
    config: TrainingConfig, run: RunDirectory, service: Service | None, ask: bool | None = None
) -> tuple[ServerProbe | None, list[Check]]:
    """Return what is known of the server that a run is to train on, and what a person should know of it.

    Args:
        ask: as `probe` of `preflight`.
    """
    if config.service == "local":
        return None, []
    try:
        found = known_server(config, run.path.parent, service, ask)
    except ServiceError as error:
        return None, [Check.failed("probe", error)]
    if found is None:
        cost = f" for {price}" if (price := _price(config, MAX_TOKENS)) else ""
        sentence = f"Not tried: preflight(…, probe=True) does, with {MAX_TOKENS:,} tokens at most{cost}."
        return None, [Check("probe", "ok", sentence)]
    cost = f", {price}" if (price := _price(config, found.tokens)) else ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.at))
    otherwise = f"The server does all that a run may ask for (tried on {when}; {found.tokens:,} tokens{cost})."
    return found, warn_or_pass("probe", about_server(found, config), otherwise)


def _price(config: TrainingConfig, tokens: int) -> str:
    prices = prices_for(config.service, config.model)
    highest = prices and max(prices.train, prices.evaluate, prices.sample)
    return f"at most ${token_cost(tokens, highest):.4f}" if highest else ""


def _state_of(run: RunDirectory, config: TrainingConfig) -> RunState | None:
    """Return the state of the run that would go on; None where there is none, or none that can be read."""
    try:
        return run.read_state() if config.resume_from_checkpoint else None
    except TinkerUtilsError:
        return None  # what is wrong with it is said below


def check_start(
    config: TrainingConfig,
    run: RunDirectory,
    plan: Plan | None,
    service: Service | None,
    same_data: bool = False,
) -> list[Check]:
    """Check what `fit` looks at once its data are prepared; with `same_data`, a run that goes on did so before."""
    checks: list[Check] = []
    if plan is not None:
        if not same_data:
            checks += warn_or_pass("duplicates", *about_duplicates(plan))
            checks += warn_or_pass("contents", plan.findings, "All that the lines hold is used, and each answer ends.")
        checks += warn_or_pass("lengths", *about_cutting(plan))
        checks += _of_adapter(plan)
    refused = [Check.failed("settings", ConfigError(sentence)) for sentence in refusals(config)]
    cautions = [Check("settings", "warn", sentence) for sentence in (*about_settings(config), *about_service(config))]
    checks += [*refused, *cautions] or [Check("settings", "ok", "The service supports all of them.")]
    if not refused:  # until they are mended, nothing is sent
        checks += _of_service(config, plan, service)
    if plan is not None:
        checks += _of_evaluation(plan)
        checks += _of_cost(plan)
    return [*checks, *_of_disk(run, plan)]


def _of_plan(plan: Plan) -> Iterator[Check]:
    sets = (f"{len(each.examples):,} for validation{f' ({name})' if name else ''}" for name, each in plan.sets.items())
    held_out = "".join(f", {one}" for one in sets)
    yield Check("data", "ok", f"{len(plan.train.examples):,} examples for training{held_out}.")
    for chats in (*plan.chats, *plan.held_out):
        yield from map(_of_format, (part for part in parts_of(chats) if part.formats))
    if plan.shares:
        yield Check("mixture", "ok", plan.shares)
    yield Check("example", "ok", first_example(plan))
    yield Check("tokenizer", "ok", "It loads, and its chat template separates prompts from answers.")
    steps, epochs = plan.total_steps, plan.config.epochs
    yield Check("steps", "ok", f"{steps:,} in {epochs:,} epochs; {plan.forecast.evaluations:,} evaluations.")


def _of_format(chats: ChatIndex) -> Check:
    """Return which format the rows of a file are in; several in one file are seldom meant."""
    found = " and ".join(f"{count:,} rows in the format {name}" for name, count in chats.formats.most_common())
    return Check("format", "warn" if len(chats.formats) > 1 else "ok", f"{chats.name}: {found}.")


def _of_run(run: RunDirectory, plan: Plan) -> Iterator[Check]:
    try:
        run.check_free()
        state = run.read_state()
        if state is None:
            to_archive(run)
            yield Check("directory", "ok", "A new run starts in this directory.")
        elif not plan.config.resume_from_checkpoint:
            yield Check(
                "directory", "warn", "A new run starts in this directory; the earlier one is moved to previous/."
            )
        else:
            changes_to_take_up(run, state, plan)
            point = resume_points(state)[0]
            ended = has_ended(state, point, plan)
            goes_on = f"Its run resumes after step {point.progress.step:,}."
            yield Check("directory", "ok", "Its run has ended; nothing is left to do." if ended else goes_on)
    except (ResumeError, RunDirectoryError) as error:
        yield Check.failed("directory", error)


def _of_adapter(plan: Plan) -> Iterator[Check]:
    """Yield how large the adapter is beside what it is to learn, and whether that is too small, or ample."""
    train, mixture, tokens = plan.train, plan.batches.mixture, plan.forecast.completion_tokens or 0
    estimated = (isinstance(train, StreamedSet) and not train.exact) or (mixture is not None and not mixture.takes_all)
    yield Check("adapter", "ok", describe_adapter(plan.config, plan.shape, tokens, estimated))
    for caution in about_rank(plan.config, len(train.lengths()), tokens, plan.shape):
        yield Check("adapter", "warn", caution)


def _of_service(config: TrainingConfig, plan: Plan | None, service: Service | None) -> list[Check]:
    if config.service == "local" and service is None:
        missing = [name for name in _LOCAL_PACKAGES if find_spec(name) is None]
        if missing:
            advice = f"{', '.join(missing)} are not installed; install tinker-utils[local]."
            return [Check.failed("service", ServiceError(f"service: local needs packages: {advice}"))]
        return [Check("service", "ok", "The embedded service is installed, and starts with the run.")]
    try:
        models = service.served_models() if service else ask_for_models(config)
        check_trainable(config.model, models)
    except (ConfigError, ServiceError) as error:
        return [Check.failed("service", error)]
    sentences = []
    if models and config.model not in models:
        sentences.append(f"{config.model} is not among the {len(models):,} models that the service offers.")
    context = models.get(config.model, Offer()).context_length
    max_tokens = 0 if plan is None else int(plan.train.lengths().max(initial=0)) + 1
    if context is not None and max_tokens > context:
        sentences.append(f"The longest example has {max_tokens:,} tokens, and the model takes {context:,}.")
    return warn_or_pass("service", sentences, "It answers and accepts the key.")


def _of_evaluation(plan: Plan) -> list[Check]:
    follows = plan.forecast
    cautions = [
        *about_evaluation(plan.config, bool(plan.sets), follows.evaluations),
        *about_eval_tokens(follows.eval_tokens, follows.tokens),
    ]
    return warn_or_pass("evaluation", cautions, "Evaluations are frequent enough for early stopping.")


def _of_cost(plan: Plan) -> list[Check]:
    config, cost = plan.config, plan.forecast.cost_usd
    if cost is None and config.service == "tinker" and config.budget_usd is not None:
        advice = "remove the budget, or add the model to prices.yaml"
        error = ConfigError(
            f"training.budget_usd: cannot be applied, because the price of {config.model} is not known; {advice}."
        )
        return [Check.failed("cost", error)]
    if config.service == "local":
        return [Check("cost", "ok", "$0: the embedded service is free.")]
    known = "The price of this model on this service is not known." if cost is None else f"At most ${cost:.2f}."
    return warn_or_pass("cost", about_money(config, cost), known)


def _of_disk(run: RunDirectory, plan: Plan | None) -> list[Check]:
    try:
        return warn_or_pass("disk", _about_disk(run, plan), "There is enough room for the run.")
    except RunDirectoryError as error:
        return [Check.failed("disk", error)]


def _about_disk(run: RunDirectory, plan: Plan | None) -> list[str]:
    """Return what to know of where the run will be written; raises RunDirectoryError where it cannot be."""
    there = next(path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise RunDirectoryError(f"{there}: cannot be written; choose another output directory.")
    needed, free = _ROOM + _RECORD_BYTES * _records(plan), shutil.disk_usage(there).free
    if free < needed:
        raise RunDirectoryError(
            f"{there}: {free / 1e6:,.0f} MB are free, but the run needs {needed / 1e6:,.0f} MB; free some space, "
            "or choose another output directory."
        )
    sentences = run.check_own() if run.path.exists() else []
    return sentences + [f"Only {free / 1e6:,.0f} MB are free on the disk of the run."] * (free < _NEARLY_FULL)


def _records(plan: Plan | None) -> int:
    """Count the records of metrics.jsonl, at most; each stands in train.log, too."""
    if plan is None:
        return 0
    config, steps = plan.config, plan.total_steps
    saves = steps // config.checkpoint_interval_steps if config.checkpoint_interval_steps else 0
    return steps // config.log_interval_steps + (1 + len(plan.sets)) * plan.forecast.evaluations + saves
