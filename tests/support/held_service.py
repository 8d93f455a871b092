"""A relay to the service that can hold every answer back for as long as a test likes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from support.relay import Message, Relay


class HeldService(Relay):
    """Passes everything on; while it is held, nobody gets an answer."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._open = asyncio.Event()
        self._open.set()

    async def answer(self, request: Message) -> Message:
        """The service's reply, once it may pass."""
        reply = await self.forward(request)
        await self._open.wait()
        return reply

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No request gets its answer inside the block."""
        self._loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._open.set)
