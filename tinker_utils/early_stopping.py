"""Decides after each evaluation whether it is the best, whether it improves enough, and whether to stop.

Two references are kept apart. The *anchor* is what patience is measured against: it moves only when an evaluation is
lower by more than the threshold, so slow steady gains still add up to an improvement. The *best* is the lowest value
seen, whatever the threshold; its checkpoint is the one worth keeping.

An evaluation is a sample of what the model could be asked, so a lower value may be luck. Where the error of the
difference to the anchor's evaluation is known, `significance` asks for a difference of that many errors; docs/noise.md
shows what each setting catches and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """The meaning of one evaluation."""

    is_best: bool
    improved: bool
    stop: bool


class EarlyStopping:
    """Stops after `patience` evaluations in a row that are not below the anchor by more than `threshold`.

    Args:
        patience: evaluations without improvement that end the run; 0 never ends it.
        threshold: nats per token by which a value must fall below the anchor to count as an improvement.
        significance: standard errors of the paired difference by which it must do so as well; None asks for none.
    """

    def __init__(self, patience: int = 0, threshold: float = 0.01, significance: float | None = None) -> None:
        if patience < 0 or not threshold >= 0 or not (significance is None or significance >= 0):
            raise ValueError(
                "patience, threshold and significance must not be negative, "
                f"got {patience}, {threshold} and {significance}"
            )
        self.patience = patience
        self.threshold = threshold
        self.significance = significance
        self.anchor = math.inf
        self.anchor_step: int | None = None
        self.best = math.inf
        self.best_step: int | None = None
        self.evals_without_improvement = 0

    def update(self, val_loss: float | None, step: int, error: float | None = None) -> Decision:
        """Take in the evaluation after `step`. None, NaN and infinity are never best, and never an improvement.

        Args:
            val_loss: nats per token, pooled over the validation set.
            step: the step whose weights were evaluated.
            error: standard error of the paired difference to the evaluation after `anchor_step`, in nats per token;
                where it is None, the threshold alone decides.
        """
        value = val_loss if val_loss is not None and math.isfinite(val_loss) else math.inf
        required = self.threshold
        if self.significance is not None and error is not None and math.isfinite(error):
            required = max(required, self.significance * error)
        is_best = value < self.best
        improved = value < self.anchor - required
        if is_best:
            self.best, self.best_step = value, step
        if improved:
            self.anchor, self.anchor_step = value, step
        self.evals_without_improvement = 0 if improved else self.evals_without_improvement + 1
        return Decision(is_best, improved, self.exhausted)

    @property
    def exhausted(self) -> bool:
        """Return whether patience is used up, by the settings of now: a larger patience lets a stopped run go on."""
        return 0 < self.patience <= self.evals_without_improvement

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen, without the settings; plain JSON."""
        return {
            "anchor": self.anchor if self.anchor < math.inf else None,
            "anchor_step": self.anchor_step,
            "best": self.best if self.best < math.inf else None,
            "best_step": self.best_step,
            "evals_without_improvement": self.evals_without_improvement,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; patience, threshold and significance stay those that this object was made with."""
        self.anchor = math.inf if state["anchor"] is None else float(state["anchor"])
        self.anchor_step = state["anchor_step"]
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.best_step = state["best_step"]
        self.evals_without_improvement = int(state["evals_without_improvement"])
