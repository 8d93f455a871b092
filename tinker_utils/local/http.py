"""The HTTP parser's bounds: it collects a request's head in memory before anybody has asked for a key."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .guard import MAX_BODY_BYTES

MAX_HEAD_BYTES = 64 * 1024
_MAX_MESSAGE_BYTES = MAX_BODY_BYTES + 1024 * 1024  # with what chunks and trailers add


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a head that does not end, and a message that is larger than any that is served."""

    _in_head = True
    _received = 0

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived, and close the connection if that is too much for one request."""
        super().data_received(data)
        self._received += len(data)
        limit = MAX_HEAD_BYTES if self._in_head else _MAX_MESSAGE_BYTES
        if self._received > limit and not self.transport.is_closing():
            self.send_400_response("The request is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._received = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is complete."""
        self._in_head = False
        super().on_headers_complete()
