"""The checkpoints of a run that are kept, and their roles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: the step after which it was taken, its `tinker://` path, and whether it is a periodic one."""

    step: int
    path: str
    periodic: bool = False


@dataclass
class Checkpoints:
    """The best checkpoint, the latest one (from which a run resumes), and the periodic ones."""

    best: Checkpoint | None = None
    latest: Checkpoint | None = None
    periodic: list[Checkpoint] = field(default_factory=list)

    def add(self, checkpoint: Checkpoint, is_best: bool) -> list[Checkpoint]:
        """Take in a new checkpoint; returns those that are neither the best nor the latest any more."""
        before = [old for old in (self.best, self.latest) if old is not None]
        self.latest = checkpoint
        if is_best:
            self.best = checkpoint
        if checkpoint.periodic:
            self.periodic.append(checkpoint)
        return [old for old in dict.fromkeys(before) if old not in (self.best, self.latest)]

    def copy(self) -> Checkpoints:
        """Copy how they stand now; the checkpoints themselves are shared, as each resume point has many."""
        return replace(self, periodic=[*self.periodic])

    @property
    def kept(self) -> list[Checkpoint]:
        """Return all checkpoints that are still needed, each once, the oldest first."""
        every = [*self.periodic, *(c for c in (self.best, self.latest) if c is not None)]
        return sorted(dict.fromkeys(every), key=lambda checkpoint: checkpoint.step)

    @property
    def result(self) -> Checkpoint | None:
        """Return the one that the run ends with: the best, or the latest where nothing was evaluated."""
        return self.best or self.latest


def model_of(path: str) -> str:
    """Return the model that saved a checkpoint, by the `tinker://` path."""
    return path.removeprefix("tinker://").partition("/")[0]
