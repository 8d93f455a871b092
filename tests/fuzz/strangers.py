"""The embedded server before the key: bytes on its port by somebody who does not have it.

The server is a process of its own, and as it is but for its patience. A case is what one connection sends; `ADDRESS`
stands in it for the server's own, and `HUGE` for more than a head may have. Some then close their half, or all of it;
most say nothing more. Hundreds of connections are open at a time, since each lives for as long as the server lets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from fuzz import wire

ADDRESS, HUGE = b"ADDRESS", b"HUGE"
_SERVER = """
import sys
from tinker_utils.local.__main__ import main
from tinker_utils.local.server import connections
connections.HEAD_LIMIT_S = 3
sys.exit(main(["--store", sys.argv[1], "--threads", "1", "--exit-with-stdin"]))
"""
_ROOT = Path(__file__).resolve().parents[2]
_AT_ONCE = 400
_LOOKED_AFTER = 200  # cases
_PATIENCE_S = 120  # many times what a machine needs that has other work, too
_MEMORY_KB = 256 << 10
_RESET = struct.pack("ii", 1, 0)
# An address that is signed in place of a key is looked at for its path and its method, too.
_REFUSED, _OF_A_DOWNLOAD = {b"400", b"401", b"403"}, {b"404", b"405", b"413", b"415"}


class StrangerError(AssertionError):
    """What went wrong, with the case that did it: one of those that were still open."""

    def __init__(self, document: bytes, message: str) -> None:
        super().__init__(message)
        self.document = document


@dataclass
class _Stranger:
    document: bytes
    pieces: list[bytes]
    ends: bool
    began: float
    heard: bytes = b""


class Strangers:
    """A server, and connections to it: `case` opens one more, and looks after those that are open."""

    def __init__(self, directory: Path) -> None:
        self._store, self._log = directory / "store", directory / "log"
        command = [sys.executable, "-c", _SERVER, str(self._store)]
        environment, pipe = {**os.environ, "PYTHONPATH": str(_ROOT)}, subprocess.PIPE
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=log)
        assert self._server.stdout is not None
        address = json.loads(self._server.stdout.readline())
        self._url, self._key = address["base_url"], address["api_key"]
        self._selector = selectors.DefaultSelector()
        self._cases = 0
        self._before, self._memory_before_kb = self._left(), self._memory_kb()

    def case(self, document: bytes) -> None:
        """Send it on a connection of its own; raises a StrangerError of this case or of an earlier one."""
        self._cases += 1
        self._open(document)
        self._look_after(_AT_ONCE)
        if self._cases % _LOOKED_AFTER == 0:
            self._look_at_server(document)

    def settle(self) -> None:
        """Wait until each connection has ended, and see that none has left anything, and that a client is served."""
        self._look_after(0)
        self._look_at_server(b"")
        grown = self._memory_kb() - self._memory_before_kb
        if grown > _MEMORY_KB:
            raise StrangerError(b"", f"the server has grown by {grown >> 10} MB")
        opened = self._asked("create_session", b'{"tags": [], "sdk_version": "0.38.0"}')
        self._asked(f"sessions/{opened['session_id']}/finish", b'{"reason": {}}')
        self._before = self._left()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        assert self._server.wait(30) == 0
        self._server.stdout.close()
        self._selector.close()

    def _open(self, document: bytes) -> None:
        split = urlsplit(self._url)
        sent = document.replace(ADDRESS, split.netloc.encode()).replace(HUGE, b"x" * 70_000)
        kind = zlib.crc32(document) % 16  # by the content, so that a case that fails once fails again
        size = len(sent) // 3 + 1 if kind < 4 else len(sent) + 1
        connection = socket.create_connection((split.hostname, split.port), _PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == 15:
            with contextlib.suppress(ConnectionError), connection:
                connection.sendall(sent)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        connection.setblocking(False)
        pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
        stranger = _Stranger(document, pieces, kind == 14, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, stranger)

    def _look_after(self, most: int) -> None:
        """Send and hear what can be, and wait until no more than so many connections are open."""
        self._move(0)
        while len(is_open := self._selector.get_map()) > most:
            self._move(0.2)
            oldest: _Stranger | None = next((key.data for key in is_open.values()), None)
            if oldest is not None and time.monotonic() - oldest.began > _PATIENCE_S:
                raise StrangerError(oldest.document, f"the connection does not end; heard was {oldest.heard!r}")

    def _move(self, timeout_s: float) -> None:
        for key, events in self._selector.select(timeout_s):
            assert isinstance(key.fileobj, socket.socket)
            if events & selectors.EVENT_WRITE:
                self._send(key.fileobj, key.data)
            if events & selectors.EVENT_READ:
                self._hear(key.fileobj, key.data)

    def _send(self, connection: socket.socket, stranger: _Stranger) -> None:
        try:
            if stranger.pieces:
                sent = connection.send(stranger.pieces[0])
                stranger.pieces[0] = stranger.pieces[0][sent:]
                if not stranger.pieces[0]:
                    del stranger.pieces[0]
            elif stranger.ends:
                stranger.ends = False
                connection.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:  # the other side has closed it before all of it was sent
            stranger.pieces, stranger.ends = [], False
        if not stranger.pieces and not stranger.ends:
            self._selector.modify(connection, selectors.EVENT_READ, stranger)

    def _hear(self, connection: socket.socket, stranger: _Stranger) -> None:
        try:
            heard = connection.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            heard = b""
        stranger.heard += heard
        if not heard:
            self._selector.unregister(connection)
            connection.close()
            _judge(stranger)

    def _look_at_server(self, document: bytes) -> None:
        """See that nothing came of all that, and that who has the key is answered."""
        if self._server.poll() is not None:
            raise StrangerError(document, f"the server ended with status {self._server.returncode}")
        if (left := self._left()) != self._before:
            raise StrangerError(document, f"{left} is there, where {self._before} was before")
        if said := self._log.read_text(encoding="utf-8", errors="replace"):
            raise StrangerError(document, f"the server's log says {said[:2000]}")

    def _left(self) -> tuple[Any, ...]:
        known = (self._asked(f"{what}?limit=9") for what in ("sessions", "training_runs", "checkpoints"))
        return (*known, sorted(path.name for path in self._store.rglob("*")))

    def _memory_kb(self) -> int:
        status = Path(f"/proc/{self._server.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0])

    def _asked(self, path: str, body: bytes | None = None) -> Any:
        headers = {"X-API-Key": self._key, "Content-Type": wire.JSON}
        request = urllib.request.Request(f"{self._url}/api/v1/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return json.loads(answer.read() or b"null")


def _judge(stranger: _Stranger) -> None:
    """Whatever was answered, it is a refusal."""
    allowed = _REFUSED | (_OF_A_DOWNLOAD if b"download" in unquote_to_bytes(stranger.document) else set())
    answered = re.findall(rb"HTTP/1\.[01] (\d+)", stranger.heard)
    unknown = sum(status in (b"404", b"405") for status in answered)
    looked_up = unknown > stranger.heard.count(b"is not served here.") and b"HEAD" not in stranger.document
    if not set(answered) <= allowed or looked_up or (stranger.heard and not answered):
        raise StrangerError(stranger.document, f"a stranger was answered {stranger.heard[:500]!r}")
    if stranger.document in _ANSWERED and not answered:
        raise StrangerError(stranger.document, "a whole request was not answered")


def _request(line: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: ADDRESS", f"Content-Type: {wire.JSON}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _of_each_route() -> list[bytes]:
    """Each request that the server knows, without a key, or with one that is not it."""
    keys = ((), ("X-API-Key: tml-wrong",), ("X-API-Key: ",), ("Authorization: Bearer tml-wrong", "Cookie: key=tml"))
    requests = []
    for number, document in enumerate(wire.corpus()):
        head, _, body = document.partition(b"\n")
        method, path, *_ = head.decode().split(" ")
        requests.append(_request(f"{method} /api/v1/{path}", body, *keys[number % len(keys)]))
    return requests


def corpus() -> list[bytes]:
    """What somebody may send who has no key, well formed and otherwise."""
    return [*_ANSWERED, *_OTHERS]


_GET = _request("GET /api/v1/healthz")
_POST = _request("POST /api/v1/create_session", b'{"tags": []}').partition(b"Content-Length")[0]
_ANSWERED = [
    *_of_each_route(),
    _GET * 40,  # one after the other, without waiting
    _GET.replace(b"ADDRESS", b"evil.example"),
    _GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
    _GET.replace(b"/api", b"http://ADDRESS/api"),
    _GET.replace(b"GET", b"HEAD"),
    _GET.replace(b"GET", b"OPTIONS"),
    _request("GET /api/v1/%68ealthz"),
    _request("GET //api/v1/healthz"),
    _request("GET /api/v1/downloads/../healthz"),
    _request("GET /api/v1/downloads/%2e%2e/%2e%2e/checkpoints?expires=1&signature=00"),
    _request("POST /api/v1/downloads/x/y/z", b"{}"),
    _POST + b"Expect: 100-continue\r\nContent-Length: 12\r\n\r\n" + b'{"tags": []}',
    _POST + b"Transfer-Encoding: chunked\r\n\r\nc\r\n" + b'{"tags": []}\r\n0\r\nX-API-Key: x\r\n\r\n' + _GET,
    _POST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
    _POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _GET,
    _POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"X-Long: HUGE\r\nContent-Length: 0\r\n\r\n",
    b"GET /HUGE HTTP/1.1\r\nHost: ADDRESS\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: ADDRESS\r\n" + b"X-One: 1\r\n" * 300 + b"\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: ADDRESS\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a client that believes in https
]
_OTHERS = [
    b"",
    b"\r\n\r\n\r\n",
    b"\x16\x03\x01",
    b"GET",
    b"GET /api/v1/healthz\r\n\r\n",
    _GET[:-4],
    _GET.replace(b"\r\n", b"\n"),
    _GET[:-2] + b" folded: x\r\n\r\n",
    _GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
    _GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    b"CONNECT ADDRESS HTTP/1.1\r\nHost: ADDRESS\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: ADDRESS\r\n\r\n",
    _POST + b"Content-Length: 12\r\n\r\n{",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"X-Trailer: HUGE\r\n" * 3,
    _POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
]
