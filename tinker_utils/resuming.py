"""Whether and where a run goes on: what run.json holds for it, and which changes of settings it can take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tinker_utils.checkpoints import Checkpoints
from tinker_utils.config import TrainingConfig, load_config_from_yaml
from tinker_utils.early_stopping import EarlyStopping
from tinker_utils.errors import ConfigError, ResumeError, RunDirectoryError
from tinker_utils.preparation import Preparation
from tinker_utils.rundir import RunDirectory, State

FORMAT = 1
# Settings that a run can be continued with at any value: they decide when it looks, saves and ends, not what it learns.
_HARMLESS = frozenset(
    {
        "training.epochs",
        "training.log_interval_steps",
        "training.checkpoint_interval_steps",
        "training.eval_interval_steps",
        "training.eval_at_epoch_end",
        "training.checkpoint_ttl_seconds",
        "training.resume_from_checkpoint",
        "training.early_stopping_patience",
        "training.early_stopping_threshold",
        "training.samples_at_evaluation",
        "training.budget_usd",
        "data.dir",
        "output.dir",
    }
)


@dataclass
class Progress:
    """Counters of a run up to and including `step`.

    The window holds the steps since the last train record: its negative log-likelihood in nats, and its tokens.
    Discarded are steps that were on their way when an evaluation ended the run: trained and paid, but no part of the
    result.
    """

    step: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    eval_tokens: int = 0
    window_nll: float = 0.0
    window_tokens: int = 0
    window_completion_tokens: int = 0
    discarded_steps: int = 0
    discarded_tokens: int = 0


@dataclass
class ResumePoint:
    """Everything needed to go on after a checkpoint, or from the start where `path` is None."""

    path: str | None = None
    progress: Progress = field(default_factory=Progress)
    early_stopping: State = field(default_factory=lambda: EarlyStopping().state_dict())
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    metrics_bytes: int = 0

    def to_dict(self) -> State:
        """Plain JSON."""
        return {**asdict(self), "checkpoints": self.checkpoints.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ResumePoint:
        """The inverse of `to_dict`."""
        return cls(
            state["path"],
            Progress(**state["progress"]),
            state["early_stopping"],
            Checkpoints.from_dict(state["checkpoints"]),
            int(state["metrics_bytes"]),
        )


def resume_points(run: RunDirectory, state: State) -> list[ResumePoint]:
    """Where the run can go on, the latest first; the last one is its start.

    Raises:
        RunDirectoryError: run.json was not written by this project, or is damaged.
    """
    try:
        if state["format"] != FORMAT:
            raise RunDirectoryError(
                f"{run.state}: has the format {state['format']!r}, and this version reads {FORMAT}; "
                "start anew in another directory."
            )
        points = [ResumePoint.from_dict(each) for each in state["resume_points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{run.state}: is damaged ({type(error).__name__}: {error}); "
            "restore it, or start anew in another directory."
        ) from error
    return [*sorted(points, key=lambda point: -point.progress.step), ResumePoint()]


def refuse_changes(run: RunDirectory, state: State, preparation: Preparation) -> None:
    """Check that the run can be continued with these settings and this data.

    Raises:
        ResumeError: a setting that decides what is learned differs, or the data do; the message shows each difference.
    """
    try:
        before = load_config_from_yaml(run.config, "run")
    except ConfigError as error:
        raise ResumeError(f"the run cannot be continued: {error}") from error
    changed = differences(before, preparation.config)
    if state.get("data_digest") != preparation.data_digest:
        changed.append(f"the data in {preparation.config.data_dir} are others than the run began with")
    if changed:
        raise ResumeError(
            f"{run.path}: the run there cannot be continued, because {'; '.join(changed)}; take the changes back, "
            "choose another output directory, or set training.resume_from_checkpoint: false to start anew."
        )


def differences(before: TrainingConfig, now: TrainingConfig) -> list[str]:
    """The settings that a run cannot change on its way and that differ, as `key was A and is B`."""
    old, new = before.to_flat_dict(), now.to_flat_dict()
    return [f"{key} was {old[key]} and is {new[key]}" for key in old if key not in _HARMLESS and old[key] != new[key]]
