"""The best of a run's evaluations, and how it stands against the base model, which step 0 is of.

The logs of this project and of others, pictures and tables all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORSE = "training made the model worse"


@dataclass(frozen=True)
class BaseModel:
    """The base model's validation loss, before any training.

    `beats_training` says whether every evaluation after it is higher.
    """

    loss: float
    beats_training: bool

    def words(self, loss: str) -> str:
        """Return its loss, as `loss` writes it, and what it says of the training."""
        return f"{loss}: {WORSE}" if self.beats_training else loss


def lowest(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> int | None:
    """Return the index of the lowest finite loss, of several that of the lowest step; both have the shape [points].

    Step 0 is the base model, which is never the best of a training, unless nothing else was evaluated.
    """
    trained = steps != 0
    usable = np.flatnonzero(np.isfinite(losses) & np.isfinite(steps) & (trained if trained.any() else True))
    return int(usable[np.lexsort((steps[usable], losses[usable]))[0]]) if len(usable) else None


def base_model(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> BaseModel | None:
    """Return what the evaluations, shape [points], say of the base model; None if it was not evaluated."""
    before, after = losses[(steps == 0) & np.isfinite(losses)], losses[(steps > 0) & np.isfinite(losses)]
    return BaseModel(float(before[0]), bool(len(after) and before[0] < after.min())) if len(before) else None
