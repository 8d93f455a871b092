"""The result of a run: how it ended, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import RunState, Status


@dataclass(frozen=True)
class TrainingResult:
    """The result that `fit` returns.

    Attributes:
        status: `completed` (all epochs), `early_stopped`, `stopped` (by a person or the budget), or `failed`.
        reason: why, in a sentence.
        output_dir: the run's directory.
        steps: optimizer steps that are part of the result.
        tokens: tokens trained on in them.
        completion_tokens: how many of these the loss was taken over.
        best_step: the step of the lowest validation loss; None where nothing was evaluated.
        best_val_loss: that loss, in nats per completion token.
        best_checkpoint: `tinker://` path of the state at that step, or of the last one where nothing was evaluated.
        cost_usd: dollars for all that was trained and evaluated; None where no price is known.
    """

    status: Status
    reason: str
    output_dir: Path
    steps: int
    tokens: int
    completion_tokens: int
    best_step: int | None
    best_val_loss: float | None
    best_checkpoint: str | None
    cost_usd: float | None

    @classmethod
    def from_state(cls, run: RunDirectory, state: RunState) -> TrainingResult:
        """Return the result of a run that has ended, from its run.json.

        Raises:
            RunDirectoryError: the run has not ended.
        """
        progress = state.progress
        if state.status == "running" or progress is None:
            raise RunDirectoryError(f"{run.state}: does not say how the run ended; let the run end first.")
        return cls(
            status=state.status,
            reason=state.reason or "",
            output_dir=run.path,
            steps=progress.step,
            tokens=progress.tokens_seen,
            completion_tokens=progress.completion_tokens_seen,
            best_step=progress.best_step,
            best_val_loss=progress.best_val_loss,
            best_checkpoint=state.best_checkpoint,
            cost_usd=progress.cost_usd,
        )
