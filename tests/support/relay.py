"""A relay between the real SDK and a real service, in which a test can meddle with every request and reply.

It speaks just enough HTTP/1.1 for that: one request after the other on each connection, bodies with a Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import urlsplit

API = "/api/v1/"


@dataclass(frozen=True)
class Message:
    """A request or a reply: its first line, its headers with lower-case names, and its body."""

    first_line: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def endpoint(self) -> str:
        """A request's path below the API's root, such as `optim_step`."""
        return self.first_line.split(" ")[1].partition("?")[0].removeprefix(API)

    @property
    def status(self) -> int:
        """A reply's status."""
        return int(self.first_line.split(" ")[1])

    def encoded(self, **headers: str) -> bytes:
        """As it goes over the wire, with some headers replaced."""
        dropped = {"transfer-encoding", "connection"}
        kept = {k: v for k, v in self.headers.items() if k not in dropped} | headers
        kept["content-length"] = str(len(self.body))
        head = "".join(f"{name}: {value}\r\n" for name, value in kept.items())
        return f"{self.first_line}\r\n{head}\r\n".encode("latin-1") + self.body

    def with_body(self, body: bytes) -> Message:
        return replace(self, body=body)


def reply(status: int, body: bytes = b"{}", **headers: str) -> Message:
    """A reply that the service did not give."""
    return Message(f"HTTP/1.1 {status} Injected", {"content-type": "application/json", **headers}, body)


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message on a connection; None where the other side has closed it."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first_line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Message(first_line, headers, await reader.readexactly(int(headers.get("content-length", 0))))


class Relay:
    """Listens on a loopback port, from a thread of its own, and passes requests on; a context manager.

    Subclasses override `answer`, which runs on that thread's event loop.
    """

    def __init__(self, target: str) -> None:
        self._host, self._port = urlsplit(target).hostname, urlsplit(target).port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: Message) -> Message | None:
        """The reply to a request; None closes the connection without one."""
        return await self.forward(request)

    async def forward(self, request: Message) -> Message:
        """Return what the service behind the relay replies."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request.encoded(host=f"{self._host}:{self._port}", connection="close"))
            received = await read_message(reader)
        finally:
            writer.close()
        if received is None:
            raise ConnectionError("the service closed the connection")
        return received

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while (request := await read_message(reader)) and (answered := await self.answer(request)):
                writer.write(answered.encoded())
                await writer.drain()
        # Without the usual farewell, as when the machine at the other end is gone.
        writer.transport.abort()
        self._tasks.discard(task)

    def drop_connections(self) -> None:
        """Close every connection at once, replies on their way included; on the relay's own loop only."""
        for task in self._tasks:
            task.cancel()

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26), self._loop
        ).result()
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._server = server
        return self

    def __exit__(self, *exception: object) -> None:
        async def close() -> None:
            self._server.close()
            tasks = list(self._tasks)
            self.drop_connections()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
