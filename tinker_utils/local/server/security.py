"""Lets in this machine's user alone: with the key, through this machine's own name, and within bounds of size.

A download is let in by its signed address instead of the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.server.connections import MAX_BODY_BYTES, let_in
from tinker_utils.local.server.scheduler import JSON, PROTOBUF

DOWNLOAD_PREFIX = "/api/v1/downloads/"

_TOO_LARGE = f"The body is larger than the {MAX_BODY_BYTES} bytes that this service takes."
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware in front of everything.

    The Host header is checked because a web page in the user's browser can be made to reach a loopback port under a
    name of its own (DNS rebinding); the name is then not one of ours. A signed download carries its permission in its
    address, which the endpoint itself checks.
    """

    def __init__(self, app: ASGIApp, api_key: str, port: int) -> None:
        self._app = app
        self._key = api_key.encode()
        self._hosts = {f"{name}:{port}".encode() for name in _LOOPBACK_NAMES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may pass, and refuse any other."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        fault = self._fault(scope, headers)
        if fault is None:
            if not _is_signed(scope):
                let_in(scope)
            await self._app(scope, _Bounded(receive), send)
        else:
            await _refuse(send, *fault)

    def _fault(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if headers.get(b"host", b"").lower() not in self._hosts:
            return 403, "The Host header must be 127.0.0.1 or localhost, with this service's port."
        if not _is_signed(scope) and not hmac.compare_digest(headers.get(b"x-api-key", b""), self._key):
            return 401, "The header X-API-Key is missing or wrong: use the key that the service printed at its start."
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            return 413, _TOO_LARGE
        if b"content-encoding" in headers:
            return 415, "This service accepts only bodies without a Content-Encoding."
        return None


def _is_signed(scope: Scope) -> bool:
    return bool(scope["path"].startswith(DOWNLOAD_PREFIX))


class _Bounded:
    """Counts what `receive` gives: a body may come in chunks, without a length given before."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            raise RequestError(_TOO_LARGE, 413)
        return message


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        # The rest of the body is not read, so nothing else can follow on this connection.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Signer:
    """Signs addresses that stay valid for a while, for as long as this server runs."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def sign(self, path: str, expires: int) -> str:
        """Return the signature that lets whoever has it read `path` until `expires`, in unix seconds."""
        return hmac.new(self._secret, f"{expires}\n{path}".encode(), hashlib.sha256).hexdigest()

    def check(self, path: str, expires: str, signature: str, now: float) -> None:
        """Raise a `RequestError` (403) unless the signature is ours and has not expired."""
        valid = expires.isascii() and expires.isdigit() and len(expires) < 16
        expected = self.sign(path, int(expires)) if valid else ""
        if not valid or not hmac.compare_digest(expected.encode(), signature.encode()) or int(expires) < now:
            raise RequestError("This download address is not valid or has expired: ask for a new one.", 403)


async def read_body(request: Request) -> bytes:
    """Return the body; raise a `RequestError` if its type is not served (415), or if the client went away."""
    if request.headers.get("content-type", JSON).partition(";")[0].strip() not in (JSON, PROTOBUF):
        raise RequestError(f"The body must be {JSON} or {PROTOBUF}.", 415)
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise RequestError("The client disconnected.") from error
