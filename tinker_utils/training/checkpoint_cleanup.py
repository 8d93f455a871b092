"""Cleans up a run's checkpoints on the service: the best, the latest and the periodic ones stay, the others go.

Only periodic checkpoints expire, if a time is set, and not while one is the best or the latest: a run that is killed,
or paused over a weekend, finds what it needs. A killed run may leave checkpoints that no run.json names; each attempt
notes under which name it saves, and the next one removes what is left there without a purpose, if the service is the
embedded one, whose store lies in the run's directory and is copied with it.

Elsewhere a copy of the run's directory may need what this one needs no more, and nothing on this machine can tell
whether there is one: a copied disk has the same inodes, names and dates. So an attempt gives up only what it has saved
itself, and lets it expire, so that a copy that was made while it trained can go on, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from tinker_utils.errors import RunDirectoryError
from tinker_utils.run.directory import RunDirectory
from tinker_utils.run.state import Checkpoint, RunState, model_of
from tinker_utils.service.client import Service
from tinker_utils.training.resuming import resume_points
from tinker_utils.training.waiting import as_answer

# How long what is superseded lasts where a copy of the run may need it; the tinker-cookbook's time for checkpoints.
_SUPERSEDED_SECONDS = 7 * 24 * 3600
_NO_SUCH_METHOD = 405


@dataclass(frozen=True)
class Kept:
    """The checkpoints to keep of those saved under some names, a name for each attempt's model.

    Attributes:
        models: the names, the first part of a checkpoint's path.
        lasting: paths that must not expire: the best and the latest.
        passing: paths of periodic checkpoints, which may.
    """

    models: tuple[str, ...]
    lasting: frozenset[str]
    passing: frozenset[str] = frozenset()


class CheckpointCleanup:
    """Removes and lets expire; nothing waits for it until `settle`.

    Args:
        service: where the checkpoints are.
        ttl_seconds: how long periodic checkpoints last once they are neither the best nor the latest, and others that
            a copy may need; None for ever and for a week.
        shared: whether a copy of the run's directory may need what earlier attempts have saved there.
    """

    def __init__(self, service: Service, ttl_seconds: int | None, shared: bool) -> None:
        self._service = service
        self._ttl_seconds = ttl_seconds
        self.shared = shared
        self._saved_here: set[str] = set()
        self._left: set[str] = set()
        self._pending: set[Future[None]] = set()
        self._failures = 0

    @property
    def left(self) -> int:
        """Return how many checkpoints the run has no use for, and a copy of it may have."""
        return len(self._left)

    def saves_as(self, model: str) -> None:
        """Note a name under which this attempt saves."""
        self._saved_here.add(model)

    def release(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Give up checkpoints that are neither the best nor the latest any more."""
        for checkpoint in checkpoints:
            if not checkpoint.periodic:
                self.remove(checkpoint.path)
            elif self._ttl_seconds and self._may_remove(checkpoint.path):
                self._submit(self._service.expire_checkpoint(checkpoint.path, self._ttl_seconds))

    def remove(self, path: str) -> None:
        """Remove a checkpoint, or let it expire where a copy of the run may need it."""
        if not self.shared:
            self._submit(self._service.delete_checkpoint(path))
        elif self._may_remove(path):
            seconds = self._ttl_seconds or _SUPERSEDED_SECONDS
            self._submit(self._service.expire_checkpoint(path, seconds), superseded=path)
        else:
            self._left.add(path)

    def sweep(self, kept: Kept) -> tuple[str, ...]:
        """Remove what earlier attempts left, and put right what expires; waits for the service's lists.

        Returns:
            The names that have to be looked at again next time: those under which something is, or was until now.
        """
        return tuple(model for model in kept.models if self._sweep(model, kept))

    async def settle(self, timeout_s: float) -> int:
        """Wait for what was asked of the service; returns how much of it failed, or was not answered in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while pending := [as_answer(request) for request in list(self._pending)]:
                    await asyncio.wait(pending)
        return self._failures + len(self._pending)

    def _sweep(self, model: str, kept: Kept) -> bool:
        try:
            found = self._service.checkpoints_of(model)
        except Exception:
            # Tidying up is not worth a run: the name is kept for the next time.
            return True
        for path, expires in found:
            if path in kept.lasting and expires:
                self._submit(self._service.expire_checkpoint(path, None))
            elif path in kept.passing and not expires and self._ttl_seconds and self._may_remove(path):
                self._submit(self._service.expire_checkpoint(path, self._ttl_seconds))
            elif path not in kept.passing | kept.lasting and not (expires and self.shared):
                self.remove(path)
        return bool(found)

    def _may_remove(self, path: str) -> bool:
        return not self.shared or model_of(path) in self._saved_here

    def _submit(self, request: Future[None], superseded: str | None = None) -> None:
        self._pending.add(request)
        request.add_done_callback(partial(self._done, superseded))

    def _done(self, superseded: str | None, request: Future[None]) -> None:
        error = None if request.cancelled() else request.exception()
        if superseded and getattr(error, "status_code", None) == _NO_SUCH_METHOD:
            # Nothing expires on such a server, and its disk would fill.
            self._submit(self._service.delete_checkpoint(superseded))
        else:
            self._failures += request.cancelled() or error is not None
        self._pending.discard(request)


def needed(state: RunState) -> Kept:
    """Return what a run that goes on needs.

    Of earlier points their own checkpoints, which may expire, but not what was the best then: a better one came.
    """
    points = resume_points(state)
    best, latest = points[0].checkpoints.best, points[0].path
    lasting = frozenset(path for path in (best and best.path, latest) if path)
    resumable = [point.path for point in points if point.path]
    passing = frozenset([*resumable, *(each.path for each in state.periodic_checkpoints)]) - lasting
    return Kept(tuple(dict.fromkeys([*state.models, *map(model_of, sorted(lasting | passing))])), lasting, passing)


def set_aside(run: RunDirectory) -> list[Kept]:
    """Return what stays of the runs that were moved aside: of each its best checkpoint and its latest."""
    kept = []
    for previous in sorted((run.path / "previous").glob("*/run.json")):
        with contextlib.suppress(RunDirectoryError):
            state = RunDirectory(previous.parent).read_state() or RunState()
            kept.append(replace(needed(state), passing=frozenset()))
    return kept
