"""Removes checkpoints that nobody needs any more, without a run's having to wait for it before its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

from tinker_utils.journal import Journal
from tinker_utils.service import Service

_SECONDS = 30


class Cleanup:
    """Asks for removals as a run goes, and hears at its end what came of them.

    Args:
        service: what holds the checkpoints.
        journal: where to say what could not be done.
    """

    def __init__(self, service: Service, journal: Journal) -> None:
        self._service = service
        self._journal = journal
        self._removals: list[Future[None]] = []

    def remove(self, *checkpoints: str) -> None:
        """Ask for checkpoints' removal."""
        self._removals += [self._service.delete_checkpoint(path) for path in checkpoints]

    async def finish(self, step: int, to_keep: str | None) -> None:
        """Wait a little for the removals, and for the expiry of `to_keep`, if it is given, to be lifted."""
        keeping = [self._service.keep_checkpoint(to_keep)] if to_keep else []
        lost = await _failures(keeping)
        left = await _failures(self._removals)
        if left:
            message = f"{left} superseded checkpoints could not be removed from the service"
            self._journal.record("notice", step, kind="warning", message=message)
        if lost:
            message = f"the expiry of {to_keep} could not be lifted: export it before it is gone"
            self._journal.record("notice", step, kind="warning", message=message)


async def _failures(futures: Sequence[Future[None]]) -> int:
    """How many of some requests failed, or were not answered in time."""
    if not futures:
        return 0
    done, pending = await asyncio.wait([asyncio.wrap_future(future) for future in futures], timeout=_SECONDS)
    return len(pending) + sum(future.exception() is not None for future in done)
