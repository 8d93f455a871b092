"""`fit`: begins a run or goes on with one, trains it on a service, and says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tinker_utils.basics.redaction import one_sentence, without_home
from tinker_utils.config.changes import setting_changes
from tinker_utils.config.loading import dump_config
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.errors import ConfigError, RunDirectoryError, TinkerUtilsError
from tinker_utils.plan.plan import Plan
from tinker_utils.run.archive import archive
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.logger import OnRecord, RunLogger
from tinker_utils.run.spending import Spending
from tinker_utils.run.state import Planned, Provenance, ResumePoint, RunState, ServerProbe, TrainingResult
from tinker_utils.service.client import Service, open_connection
from tinker_utils.training.checks import PreflightReport, check_start, probed_server
from tinker_utils.training.provenance import provenance
from tinker_utils.training.recovery import Recovery
from tinker_utils.training.resuming import (
    changes_to_take_up,
    has_ended,
    prepared,
    resume_points,
    stretched_schedule,
    with_fresh_patience,
)


async def fit(
    config: TrainingConfig,
    output_dir: Path | str | None = None,
    *,
    service: Service | None = None,
    preparation: Plan | None = None,
    on_record: OnRecord | None = None,
) -> TrainingResult:
    """Train, from a notebook cell or any coroutine.

    A run that was cut off in `output_dir` goes on where it was; one that has ended there returns its result, unless
    the settings now ask for more. Interrupting (the kernel's button, Ctrl-C, or a STOP file in the directory) finishes
    the steps in flight, saves and returns; interrupting twice aborts at once, and the run can still be resumed.

    Args:
        config: what to do.
        output_dir: the run's directory; `config.output_dir` if None.
        service: a connection to use, which stays open; a closed one is opened anew. None opens one for this run.
        preparation: what `prepare(config)` gave, if it was called already.
        on_record: called with each record of metrics.jsonl.

    Raises:
        ConfigError, DataError, RenderingError: the run cannot begin (`preflight` tells); nothing was spent or written.
        ResumeError: the run in `output_dir` cannot go on with these settings or data.
        RunDirectoryError: the directory is in use, damaged or not writable.
        ServiceError: the service cannot be reached, or refused a request; the run resumes from its latest checkpoint.
    """
    config = config.resolved()
    run = RunDirectory(output_dir or config.output_dir)
    with run.lock():
        run.clear_requests()
        if service is not None:
            await asyncio.to_thread(service.reopen)
        if preparation and (changed := setting_changes(preparation.config, config)):
            raise ConfigError(
                f"preparation: was made with other settings ({'; '.join(map(str, changed))}); call "
                "prepare(config) again."
            )
        before = run.read_state() if config.resume_from_checkpoint else None
        plan = await asyncio.to_thread(prepared, config, preparation, before)
        changes = changes_to_take_up(run, before, plan) if before else []
        points = resume_points(before)
        if before and has_ended(before, points[0], plan):
            return TrainingResult.from_state(run.path, before)
        server, cautions = await asyncio.to_thread(_checked, plan, run, service, same_data=before is not None)
        if server and not server.can_sample_in_training:
            plan = replace(plan, sampled=())
        if before is None:
            archive(run)
        run.write_config(dump_config(config))
        points[0] = with_fresh_patience(points[0], before, plan)
        # Git may take its time, and so may large sets: neither must hold up the event loop, where a live view draws.
        await asyncio.to_thread(plan.count_bytes)
        made_with = await asyncio.to_thread(provenance, plan)
        state = _first_state(plan, points, before, made_with)
        state.server = server or (before.server if before else None)
        cautions += [*stretched_schedule(before, plan), *_lost_state(run, before)]
        notices = [("warning", sentence) for sentence in cautions]
        if changes:
            notices.append(("changed", f"the run resumes with {', '.join(map(str, changes))}"))
        with RunLogger(run, state, on_record) as logger:
            return await _on_service(plan, logger, notices, service)


def fit_blocking(
    config: TrainingConfig,
    output_dir: Path | str | None = None,
    *,
    service: Service | None = None,
    preparation: Plan | None = None,
    on_record: OnRecord | None = None,
) -> TrainingResult:
    """Train as `fit` does, and block until the run has ended: for scripts.

    Raises:
        TinkerUtilsError: an event loop is running already, as in a notebook; use `await fit(…)` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(fit(config, output_dir, service=service, preparation=preparation, on_record=on_record))
    raise TinkerUtilsError(
        "fit_blocking was called while an event loop is running, as in a notebook; use `await fit(…)`."
    )


def _checked(
    plan: Plan, run: RunDirectory, service: Service | None, same_data: bool
) -> tuple[ServerProbe | None, list[str]]:
    """Refuse a run that cannot begin; returns what its server was found to do, and what is to be said of the start."""
    checks = check_start(plan.config, run, plan, service, same_data=same_data)
    # A server that cannot be reached or does not have the model fails before it is asked for more.
    PreflightReport(tuple(checks)).raise_for_failures()
    server, probed = probed_server(plan.config, run, service)
    report = PreflightReport((*checks, *probed))
    report.raise_for_failures()
    return server, report.warnings


def _lost_state(run: RunDirectory, before: RunState | None) -> list[str]:
    """Return what to say where a run's run.json is missing, so that another begins in its place."""
    if before or not run.spending.exists():
        return []
    return ["run.json was lost: a new run begins, and what the old one spent is counted on."]


def _first_state(plan: Plan, points: list[ResumePoint], before: RunState | None, made_with: Provenance) -> RunState:
    config, before = plan.config, before or RunState()
    planned = Planned(
        model=without_home(config.model),
        service=config.service,
        epochs=config.epochs,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.batches.steps_per_epoch,
        warmup_steps=plan.forecast.warmup_steps,
        patience=config.early_stopping_patience,
        expected_tokens=plan.forecast.tokens,
        expected_cost_usd=plan.forecast.cost_usd,
    )
    return RunState(
        plan=planned,
        progress=before.progress,
        best_checkpoint=before.best_checkpoint,
        spent=before.spent,
        data_digest=plan.file_digest if plan.renderer.as_before else plan.data_digest,
        rendering=None if plan.renderer.as_before else plan.rendering,
        provenance=made_with,
        resume_points=[point for point in reversed(points) if point.path],
        periodic_checkpoints=before.periodic_checkpoints,
        skipped_steps=before.skipped_steps,
        models=before.models,
    )


async def _on_service(
    plan: Plan,
    logger: RunLogger,
    notices: list[tuple[str, str]],
    service: Service | None,
) -> TrainingResult:
    """Open the service, restore or create the model, and loop; run.json says how it ended, also when it failed."""
    try:
        logger.activity("starting", f"connecting to {plan.config.service}")
        async with open_service(plan.config, logger.run.local_store, service) as connection:
            with Spending(logger.run.spending, logger.state.spent, plan.config.service != "local") as spending:
                return await Recovery(plan, logger, connection, spending).train(notices)
    except (asyncio.CancelledError, KeyboardInterrupt):
        logger.abandon("stopped", "the run was aborted; it resumes from its latest checkpoint")
        raise
    except Exception as error:
        known = isinstance(error, TinkerUtilsError)
        logger.abandon("failed", str(error) if known else one_sentence(f"{type(error).__name__}: {error}"))
        raise
    finally:
        with contextlib.suppress(RunDirectoryError):
            logger.run.clear_requests()


@asynccontextmanager
async def open_service(config: TrainingConfig, store: Path, service: Service | None = None) -> AsyncIterator[Service]:
    """Give the service, or one of its own, which is closed again even if opening it is interrupted."""
    if service is not None:
        yield service
        return
    opening = asyncio.ensure_future(asyncio.to_thread(open_connection, config, store))
    try:
        yield await asyncio.shield(opening)
    finally:
        connection = await opening
        await asyncio.to_thread(connection.close)
