"""Decides whether and where a run goes on: what run.json holds for it, and which changes of settings it can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tinker_utils.basics.redaction import quoted
from tinker_utils.config.changes import SettingChange, setting_changes
from tinker_utils.config.settings import TrainingConfig, load_config_from_yaml
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.errors import ConfigError, ResumeError, RunDirectoryError
from tinker_utils.plan.plan import Plan
from tinker_utils.run.checkpoints import Checkpoints
from tinker_utils.run.directory import RunDirectory, State

FORMAT = 1
_MAX_COUNT = 2**62  # more than anything counted here can reach


@dataclass
class Progress:
    """Counters of a run up to and including `step`.

    The window holds the steps since the last train record: its negative log-likelihood in nats, its tokens and time.
    Discarded are steps that were in flight when an evaluation ended the run: trained and paid, but no part of the
    result. Left out are steps whose loss or gradient was not finite, and whose batches were then not trained on.
    """

    step: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    eval_tokens: int = 0
    window_nll: float = 0.0
    window_tokens: int = 0
    window_completion_tokens: int = 0
    window_seconds: float = 0.0
    discarded_steps: int = 0
    discarded_tokens: int = 0
    left_out_steps: int = 0


@dataclass
class ResumePoint:
    """Everything needed to go on after a checkpoint, or from the start where `path` is None."""

    path: str | None = None
    progress: Progress = field(default_factory=Progress)
    early_stopping: State = field(default_factory=lambda: EarlyStopping().state_dict())
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
        stopper.load_state_dict(self.early_stopping)
        return stopper

    @property
    def compared_steps(self) -> tuple[int | None, int | None]:
        """Return the evaluations that later ones are compared with: the best, and patience's anchor."""
        return self.early_stopping["best_step"], self.early_stopping.get("anchor_step")

    def to_dict(self) -> State:
        """Return plain JSON."""
        return {**asdict(self), "checkpoints": self.checkpoints.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], periodic: Sequence[Mapping[str, Any]]) -> ResumePoint:
        """Return the inverse of `to_dict`, given the run's periodic checkpoints."""
        point = cls(
            state["path"],
            Progress(**state["progress"]),
            state["early_stopping"],
            Checkpoints.from_dict(state["checkpoints"], periodic),
        )
        point.check()
        return point

    def check(self) -> None:
        """Raise TypeError or ValueError for what no run has written: it would fail later, in the middle of training."""
        EarlyStopping().load_state_dict(self.early_stopping)
        for name, count in asdict(self.progress).items():
            allowed = int | float if name.startswith("window_") else int
            if not isinstance(count, allowed) or isinstance(count, bool):
                raise TypeError(f"{name} is {quoted(count)}")
            if not 0 <= count < _MAX_COUNT and name != "window_nll":
                raise ValueError(f"{name} is {quoted(count)}")
        for step in self.compared_steps:
            if not isinstance(step, int | None):
                raise TypeError(f"a step is {quoted(step)}")
        for checkpoint in self.checkpoints.kept:
            if not isinstance(checkpoint.path, str) or not isinstance(checkpoint.step, int):
                raise TypeError(f"a checkpoint is {quoted((checkpoint.step, checkpoint.path))}")
        if not isinstance(self.path, str | None):
            raise TypeError(f"path is {quoted(self.path)}")


def resume_points(run: RunDirectory, state: State) -> list[ResumePoint]:
    """Return where the run can go on, the latest first; the last one is its start.

    Raises:
        RunDirectoryError: run.json was not written by this project, or is damaged.
    """
    try:
        if state["format"] != FORMAT:
            raise RunDirectoryError(
                f"{run.state}: has the format {quoted(state['format'])}, and this version reads {FORMAT}; "
                "start anew in another directory."
            )
        periodic = state["periodic_checkpoints"]
        points = [ResumePoint.from_dict(each, periodic) for each in state["resume_points"]]
    except RunDirectoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(
            f"{run.state}: is damaged ({type(error).__name__}: {error}); "
            "restore it, or start anew in another directory."
        ) from error
    return [*sorted(points, key=lambda point: -point.progress.step), ResumePoint()]


def has_ended(state: State, point: ResumePoint, plan: Plan) -> bool:
    """Return whether the run came to its end and the settings of now ask for no more."""
    if state.get("status") not in ("completed", "early_stopped"):
        return False
    exhausted = point.stopper(plan.config).exhausted and not _asks_for_more_epochs(state, plan)
    return exhausted or point.progress.step >= plan.total_steps


def with_fresh_patience(point: ResumePoint, state: State, plan: Plan) -> ResumePoint:
    """Return the same, counting from 0 again where patience had run out and more epochs are asked for than then."""
    if not (_asks_for_more_epochs(state, plan) and point.stopper(plan.config).exhausted):
        return point
    return replace(point, early_stopping=point.early_stopping | {"evals_without_improvement": 0})


def _asks_for_more_epochs(state: State, plan: Plan) -> bool:
    planned = _planned(state, "epochs")
    return planned is not None and plan.config.epochs > planned


def changes_to_take_up(run: RunDirectory, state: State, plan: Plan) -> list[SettingChange]:
    """Return the harmless ones among the differences between what the run began with and these settings and data.

    Raises:
        ResumeError: a setting that decides what is learned differs, or the data do; the message shows each difference.
    """
    try:
        before = load_config_from_yaml(run.config, "run")
    except ConfigError as error:
        raise ResumeError(f"the run cannot be continued: {error}") from error
    changes = setting_changes(before, plan.config)
    refused = [str(change) for change in changes if not change.harmless]
    if (old := state.get("data_digest")) != plan.data_digest:
        new = plan.data_digest
        refused.append(f"the data in {plan.config.data_dir} (SHA-256): {str(old)[:12]} → {new[:12]}")
    if refused:
        raise ResumeError(
            f"{run.path}: the run there cannot be continued with other settings or data than it began with: "
            f"{'; '.join(refused)}. Take the changes back, choose another output directory, or set "
            "training.resume_from_checkpoint: false to start anew."
        )
    return [change for change in changes if change.harmless]


def stretched_schedule(state: State, plan: Plan) -> list[str]:
    """Return what to say when another number of steps moves the learning rate of the steps that are left."""
    planned = _planned(state, "total_steps")
    config = plan.config
    moves = config.lr_schedule != "constant" or config.warmup_ratio > 0
    if planned in (None, plan.total_steps) or not moves:
        return []
    return [
        f"The run was planned for {planned} steps and now has {plan.total_steps}: warm-up and decay of the "
        "learning rate follow the new number from here on."
    ]


def _planned(state: State, name: str) -> int | None:
    plan = state.get("plan")
    value = plan.get(name) if isinstance(plan, dict) else None
    return value if isinstance(value, int) else None
