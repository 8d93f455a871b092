"""Reads a request's body, of a type that is served; the `Guard` bounds its size."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from .faults import RequestError
from .queueing import JSON, PROTOBUF


async def read_body(request: Request) -> bytes:
    """The body; a `RequestError` if it is of another type (415), or if the client went away."""
    if request.headers.get("content-type", JSON).partition(";")[0].strip() not in (JSON, PROTOBUF):
        raise RequestError(f"The body must be {JSON} or {PROTOBUF}.", 415)
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise RequestError("The client went away.") from error
