"""Evaluations conversation by conversation: what a pooled loss is made of, and what a later one is compared with.

Only the best evaluation and patience's anchor are compared with, so only they are kept: as files in the run directory,
so that a resumed run has the very same numbers. A file holds nothing but float64 values in the order of the validation
set: there is nothing to decode.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinker_utils.loss import PooledLoss, paired_difference, pool
from tinker_utils.run.directory import write_atomically, writing

_SUFFIX = ".f64"
_DTYPE = np.dtype("<f8")


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation set.

    Attributes:
        total: negative log-likelihood of all conversations, in nats.
        totals: that of each conversation, shape [m]; None where the service does not tell.
        completion_tokens: completion tokens of each conversation, shape [m].
    """

    total: float
    totals: tuple[float, ...] | None
    completion_tokens: tuple[int, ...]

    @cached_property
    def pooled(self) -> PooledLoss:
        """Return the loss of all; with a standard error where each conversation's own is known."""
        counts = self.completion_tokens
        return PooledLoss(self.total, sum(counts)) if self.totals is None else pool(self.totals, counts)


class PastEvaluations:
    """The evaluations of one run that are kept, by the step whose weights they are about.

    Args:
        directory: where their files are; it is made when there is something to keep.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, step: int, evaluation: Evaluation) -> None:
        """Keep the evaluation after `step`."""
        with writing(self._directory):
            if evaluation.totals is None:
                self._file(step).unlink(missing_ok=True)
            else:
                self._directory.mkdir(mode=0o700, exist_ok=True)
                write_atomically(self._file(step), np.array(evaluation.totals, dtype=_DTYPE).tobytes())

    def difference(self, step: int | None, evaluation: Evaluation) -> PooledLoss | None:
        """Return the paired difference between an evaluation and the one kept for `step`.

        None where one of the two is not known conversation by conversation.
        """
        before = None if step is None else self._load(step)
        if before is None or evaluation.totals is None or len(before) != len(evaluation.totals):
            return None
        return paired_difference(evaluation.totals, before, evaluation.completion_tokens)

    def keep_only(self, steps: Collection[int | None]) -> None:
        """Remove the files of all other steps than these, those of an attempt that was cut off among them."""
        needed = {self._file(step) for step in steps if step is not None}
        with writing(self._directory):
            for file in set(self._directory.glob(f"step-*{_SUFFIX}")) - needed:
                file.unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}{_SUFFIX}"

    def _load(self, step: int) -> NDArray[np.float64] | None:
        """Return the file's values, fewer where it is torn; None where it is missing, as after an older version."""
        try:
            return np.fromfile(self._file(step), dtype=_DTYPE)
        except OSError:
            return None
