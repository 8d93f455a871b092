"""Bounds what a connection may take: memory, time, and a place among the others. Most of it is before any key is seen.

Time is counted in seconds that the server saw pass, one at each `tick`: while the machine sleeps, or the server is
stopped, nobody's time runs out.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
import struct

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
_MAX_MESSAGE_BYTES = MAX_BODY_BYTES + 1024 * 1024  # with what chunks and trailers add

HEAD_LIMIT_S = 10
"""So long may a connection live before it shows the key, and wait for each later request's head to be complete."""

STALL_LIMIT_S = 30
"""So long may a body take whose head had the key, and an answer of which its client takes nothing."""

MAX_UNUSED = 1024
"""Connections on which no request is served: one more takes the place of the oldest."""

BACKLOG = 64
"""Connections that are accepted at a time, before any is counted: so few that a new one is heard before it must go."""

_WANTED_FILES = 8192
_AT_ONCE = struct.pack("ii", 1, 0)


@functools.cache
def max_connections() -> int:
    """Return how many connections there may be: half of the open files, of which the process is allowed more first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _WANTED_FILES:  # an unlimited number is below 0
        soft = min(_WANTED_FILES, hard) if hard >= 0 else _WANTED_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(soft if soft >= 0 else _WANTED_FILES, _WANTED_FILES) // 2


class BoundedProtocol(HttpToolsProtocol):
    """A connection that ends when it sends too much, lets the server wait too long, or is one too many.

    The HTTP parser collects a request's head in memory before anybody has asked for a key: a head that does not end is
    refused, and so is a message that is larger than any that is served.
    """

    _in_head = True
    _received = 0
    _known = False
    _waited_s = 0
    _buffered = 0
    _taken = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, in the place of another if there are too many."""
        super().connection_made(transport)
        self._unused: dict[BoundedProtocol, None] = self.app_state.setdefault("unused", {})
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._unused.pop(self, None)

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived, and close the connection if that is too much for one request."""
        super().data_received(data)
        self._received += len(data)
        limit = MAX_HEAD_BYTES if self._in_head else _MAX_MESSAGE_BYTES
        if self._received > limit and not self.transport.is_closing():
            self.send_400_response("The request is too large.")

    def resume_writing(self) -> None:
        """Note that the client has taken what was written."""
        super().resume_writing()
        self._taken = True

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        self._in_head, self._received = True, 0
        super().on_message_begin()
        self.scope["state"]["connection"] = self

    def on_headers_complete(self) -> None:
        """Note that a request's head is complete."""
        self._in_head = False
        super().on_headers_complete()

    def serve(self) -> None:
        """Note that its request is this machine's user's: others do not take this place before the answer is sent."""
        self._known, self._waited_s = True, 0
        self._unused.pop(self, None)

    def tick(self) -> None:
        """Count one second, unless the client has moved or it is the server's turn, and end what takes too many."""
        buffered = self.transport.get_write_buffer_size()
        answered = self.cycle is None or self.cycle.response_complete
        moved = self._taken or buffered < self._buffered
        waits = answered or self.cycle.more_body or buffered > 0
        self._waited_s = 0 if self._known and (moved or not waits) else self._waited_s + 1
        self._buffered, self._taken = buffered, False
        at_rest = answered and not buffered
        if at_rest and self not in self._unused:
            self._rest()
        if self._waited_s > (STALL_LIMIT_S if self._known and not at_rest else HEAD_LIMIT_S):
            if buffered:  # what the client does not take is kept by the system otherwise
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

    def _rest(self) -> None:
        self._unused[self] = None
        if len(self._unused) > MAX_UNUSED or len(self.connections) > max_connections():
            oldest = next(iter(self._unused))
            del self._unused[oldest]
            oldest.transport.abort()


def let_in(scope: Scope) -> None:
    """Tell a request's connection that it has the key, or a signature in its place."""
    connection = scope.get("state", {}).get("connection")
    if isinstance(connection, BoundedProtocol):
        connection.serve()
