"""Decides whether and where a run goes on: what run.json holds for it, and which changes of settings it can take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from tinker_utils.config.changes import SettingChange, setting_changes
from tinker_utils.config.settings import TrainingConfig, load_config_from_yaml
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.errors import ConfigError, ResumeError
from tinker_utils.plan.plan import Plan
from tinker_utils.run.checkpoints import Checkpoints
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Progress, Roles, RunState, SavedPoint, StoppingState


@dataclass
class ResumePoint:
    """Everything needed to go on after a checkpoint, or from the start where `path` is None."""

    path: str | None = None
    progress: Progress = field(default_factory=Progress)
    early_stopping: StoppingState = field(default_factory=StoppingState)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def without_lost_best(self, kept: Checkpoints) -> ResumePoint:
        """Return the same without its best checkpoint, if later ones had superseded that and it was removed."""
        if self.checkpoints.best is None or self.checkpoints.best in kept.kept:
            return self
        return replace(self, checkpoints=replace(self.checkpoints, best=None))

    def stopper(self, config: TrainingConfig) -> EarlyStopping:
        """Return early stopping as it stood here, under the settings of now."""
        stopper = EarlyStopping(
            config.early_stopping_patience, config.early_stopping_threshold, config.early_stopping_significance
        )
        stopper.load_state_dict(msgspec.structs.asdict(self.early_stopping))
        return stopper

    @property
    def compared_steps(self) -> tuple[int | None, int | None]:
        """Return the evaluations that later ones are compared with: the best, and patience's anchor."""
        return self.early_stopping.best_step, self.early_stopping.anchor_step

    def saved(self) -> SavedPoint:
        """Return what run.json keeps of the point, which is not the start."""
        roles = Roles(self.checkpoints.best, self.checkpoints.latest)
        return SavedPoint(str(self.path), self.progress, self.early_stopping, roles)


def resume_points(state: RunState | None) -> list[ResumePoint]:
    """Return where the run can go on, the latest first; the last one is its start."""
    state = state or RunState()
    points = [
        ResumePoint(each.path, each.progress, each.early_stopping, each.roles(state.periodic_checkpoints))
        for each in state.resume_points
    ]
    return [*sorted(points, key=lambda point: -point.progress.step), ResumePoint()]


def has_ended(state: RunState, point: ResumePoint, plan: Plan) -> bool:
    """Return whether the run came to its end and the settings of now ask for no more."""
    if not state.ended:
        return False
    exhausted = point.stopper(plan.config).exhausted and not _asks_for_more_epochs(state, plan)
    return exhausted or point.progress.step >= plan.total_steps


def with_fresh_patience(point: ResumePoint, state: RunState | None, plan: Plan) -> ResumePoint:
    """Return the same, counting from 0 again where patience had run out and more epochs are asked for than then."""
    if not (_asks_for_more_epochs(state, plan) and point.stopper(plan.config).exhausted):
        return point
    fresh = msgspec.structs.replace(point.early_stopping, evals_without_improvement=0)
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
        before = load_config_from_yaml(run.config, "run")
    except ConfigError as error:
        raise ResumeError(f"the run cannot be resumed: {error}") from error
    changes = setting_changes(before, plan.config)
    refused = [str(change) for change in changes if not change.harmless]
    if (old := state.data_digest) != plan.data_digest:
        new = plan.data_digest
        refused.append(f"the data in {plan.config.data_dir} (SHA-256): {old[:12]} → {new[:12]}")
    if refused:
        raise ResumeError(
            f"{run.path}: the run cannot be resumed, because its settings or data have changed: "
            f"{'; '.join(refused)}. Undo the changes, choose another output directory, or set "
            "training.resume_from_checkpoint: false to start a new run."
        )
    return [change for change in changes if change.harmless]


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
