"""Decides whether and where a run goes on: what run.json holds for it, and which changes of settings it can take."""

from __future__ import annotations

import datetime

import msgspec
from msgspec.structs import replace

from tinker_utils.basics.redaction import quoted
from tinker_utils.config.changes import SettingChange, setting_changes
from tinker_utils.config.loading import load_run_config
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.template import DATE, NO_DATE
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.errors import ConfigError, ResumeError
from tinker_utils.plan.plan import Plan
from tinker_utils.plan.preparing import prepare
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Progress, ResumePoint, Roles, RunState, StoppingState


def resume_points(state: RunState | None) -> list[ResumePoint]:
    """Return where the run can go on, the latest first; the last one is its start."""
    saved = state.resume_points if state else []
    start = ResumePoint("", Progress(), StoppingState(), Roles())
    return [*sorted(saved, key=lambda point: point.progress.step)[::-1], start]


def stopper_at(point: ResumePoint, config: TrainingConfig) -> EarlyStopping:
    """Return early stopping as it stood at a point, under the settings of now."""
    stopper = EarlyStopping(
        config.early_stopping_patience, config.early_stopping_threshold, config.early_stopping_significance
    )
    stopper.load_state_dict(msgspec.structs.asdict(point.early_stopping))
    return stopper


def without_lost_best(point: ResumePoint, state: RunState) -> ResumePoint:
    """Return the same without its best checkpoint, if later ones had superseded that and it was removed."""
    latest = resume_points(state)[0].checkpoints
    if point.checkpoints.best in (None, latest.best, latest.latest, *state.periodic_checkpoints):
        return point
    return replace(point, checkpoints=Roles(None, point.checkpoints.latest))


def has_ended(state: RunState, point: ResumePoint, plan: Plan) -> bool:
    """Return whether the run came to its end and the settings of now ask for no more."""
    if not state.ended:
        return False
    exhausted = stopper_at(point, plan.config).exhausted and not _asks_for_more_epochs(state, plan)
    return exhausted or point.progress.step >= plan.total_steps


def with_fresh_patience(point: ResumePoint, state: RunState | None, plan: Plan) -> ResumePoint:
    """Return the same, counting from 0 again where patience had run out and more epochs are asked for than then."""
    if not (_asks_for_more_epochs(state, plan) and stopper_at(point, plan.config).exhausted):
        return point
    fresh = replace(point.early_stopping, evals_without_improvement=0)
    return replace(point, early_stopping=fresh)


def _asks_for_more_epochs(state: RunState | None, plan: Plan) -> bool:
    planned = state.plan.epochs if state else None
    return planned is not None and plan.config.epochs > planned


def changes_to_take_up(run: RunDirectory, state: RunState, plan: Plan) -> list[SettingChange]:
    """Return the harmless ones among the differences between what the run began with and these settings and data.

    Raises:
        ResumeError: a setting that decides what is learned differs, or the data do; the message shows each difference.
    """
    try:
        before = load_run_config(run.config)
    except ConfigError as error:
        raise ResumeError(f"the run cannot be resumed: {error}") from error
    changes = setting_changes(before, plan.config)
    refused = [str(change) for change in changes if not change.harmless]
    refused += _changes_of_data(state, plan, [change for change in changes if change.key.startswith("data.")])
    if refused:
        raise ResumeError(
            f"{run.path}: the run cannot be resumed, because its settings or data have changed: "
            f"{'; '.join(refused)}. Undo the changes, choose another output directory, or set "
            "training.resume_from_checkpoint: false to start a new run."
        )
    return [change for change in changes if change.harmless]


def prepared(config: TrainingConfig, preparation: Plan | None, state: RunState | None) -> Plan:
    """Return a plan that renders as the run has done so far: with its date, or by the ways of version 0.2.

    Raises:
        TinkerUtilsError: as `prepare`.
    """
    as_before = state is not None and state.rendering is None
    known = state.rendering.get(DATE, NO_DATE) if state and state.rendering else NO_DATE
    fits = preparation and preparation.renderer.as_before == as_before
    if preparation and fits and known in (NO_DATE, preparation.renderer.rendering.get(DATE)):
        return preparation
    try:
        date = None if known == NO_DATE else datetime.date.fromisoformat(known)
    except ValueError as error:
        raise ResumeError(f"run.json: {DATE} is {quoted(known)}, not a date; start a new run.") from error
    return prepare(config, preparation and preparation.tokenizer, date=date, as_before=as_before)


def _changes_of_data(state: RunState, plan: Plan, settings: list[SettingChange]) -> list[str]:
    """Return how the data that a run began with differ from those of now; `settings` are what changed in theirs."""
    before, now = state.rendering, plan.rendering
    digest = plan.file_digest if before is None else plan.data_digest
    if state.data_digest == digest:
        return []
    began_with = before or now
    was, is_now = ({name: each.get(name, "none") for name in began_with | now} for each in (began_with, now))
    changes = [f"the {name}: {was[name]} → {is_now[name]}" for name in was if was[name] != is_now[name]]
    files = state.provenance.data if state.provenance else {}
    for name, (_, new) in plan.files.items():
        if name in files and files[name].sha256 != new:
            changes.append(f"the data: {name} (SHA-256): {files[name].sha256[:12]} → {new[:12]}")
    old = state.data_digest
    return (
        changes
        or [str(each) for each in settings]
        or [f"the data in {plan.config.data_dir} (SHA-256): {old[:12]} → {digest[:12]}"]
    )


def stretched_schedule(state: RunState | None, plan: Plan) -> list[str]:
    """Return what to say when another number of steps moves the learning rate of the steps that are left."""
    planned = state.plan.total_steps if state else None
    config = plan.config
    moves = config.lr_schedule != "constant" or config.warmup_ratio > 0
    if planned in (None, plan.total_steps) or not moves:
        return []
    return [
        f"The run was planned for {planned} steps and now has {plan.total_steps}: from now on, warm-up and "
        "decay of the learning rate use the new number of steps."
    ]
