"""The HTTP side of the service: endpoints of the tinker SDK 0.38, each decoded, handed on, and answered.

A request that cannot be understood is answered with a 4xx that says why. A request that can, but fails when it is
executed, answers through its future. Neither ends the server, and nothing is answered with a 500 on purpose.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinker_utils.basics.redaction import one_sentence
from tinker_utils.basics.strict_json import parse_json
from tinker_utils.local.protocol import requests
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.tensors import parse_forward_backward
from tinker_utils.local.server.handlers import RETRIEVE_TIMEOUT_S, Handlers
from tinker_utils.local.server.rest import Rest
from tinker_utils.local.server.scheduler import JSON
from tinker_utils.local.server.security import Signer, read_body

SDK_VERSION = "0.38"
"""The minor version of the SDK whose protocol this is."""

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=requests.RequestBody)
Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[M], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]


def sdk_warning(version: str) -> str | None:
    """Return a sentence if this version of the SDK is not the one whose protocol is spoken here; None if it is."""
    if version == SDK_VERSION or version.startswith(f"{SDK_VERSION}."):
        return None
    return (
        f"tinker_utils.local speaks the wire protocol of tinker {SDK_VERSION}, but this is tinker {version[:40]}: "
        f"install tinker=={SDK_VERSION}.*, or expect requests to fail."
    )


def build_app(handlers: Handlers, base_url: str) -> Starlette:
    """Return the application, without the `Guard` that belongs in front of it."""
    endpoints = Endpoints(handlers)
    rest = Rest(handlers, Signer(), base_url)
    routes = [
        _post("client/config", endpoints.client_config),
        _post("client/dynamic_config", endpoints.client_dynamic_config),
        _post("create_session", endpoints.create_session),
        _post("session_heartbeat", endpoints.session_heartbeat),
        _post("telemetry", endpoints.telemetry),
        _post("create_model", _json(requests.CreateModelRequest, handlers.create_model)),
        _post("load_weights", endpoints.ordered(requests.LoadWeightsRequest, handlers.load_weights)),
        _post("get_info", _json(requests.GetInfoRequest, handlers.get_info)),
        _post("forward_backward", endpoints.forward_backward),
        _post("optim_step", endpoints.ordered(requests.OptimStepRequest, handlers.optim_step)),
        _post("save_weights", endpoints.ordered(requests.SaveWeightsRequest, handlers.save_weights)),
        _post(
            "save_weights_for_sampler",
            endpoints.ordered(requests.SaveWeightsForSamplerRequest, handlers.save_weights_for_sampler),
        ),
        _post(
            "save_weights_external",
            endpoints.ordered(requests.SaveWeightsExternalRequest, handlers.save_weights_external),
        ),
        _post(
            "create_sampling_session", _json(requests.CreateSamplingSessionRequest, endpoints.create_sampling_session)
        ),
        _post("join_sampling_session", _json(requests.JoinSamplingSessionRequest, handlers.samplers.join)),
        _post("asample", _json(requests.SampleRequest, handlers.samplers.sample)),
        _post("retrieve_future", endpoints.retrieve_future),
        *rest.routes(),
    ]
    on_errors: Mapping[Any, Any] = {RequestError: _on_request_error, HTTPException: _on_http_error, Exception: _on_bug}
    app = Starlette(routes=routes, exception_handlers=on_errors)
    app.router.redirect_slashes = False  # a path that is not served is a 404
    return app


class Endpoints:
    """Endpoints that need more than to decode and hand on."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def client_config(self, request: Request) -> Response:
        """Send no flags: the SDK's own defaults are what this service wants."""
        response = await self.client_dynamic_config(request)
        # The SDK asks on a connection made for this, and then abandons it open.
        response.headers["connection"] = "close"
        return response

    async def client_dynamic_config(self, request: Request) -> Response:
        """Send no flags here, either."""
        requests.decode(requests.ClientConfigRequest, await read_body(request))
        return reply({})

    async def create_session(self, request: Request) -> Response:
        """Open a session, and tell a client of another version that it may fail."""
        message = requests.decode(requests.CreateSessionRequest, await read_body(request))
        session = self._handlers.sessions.create(message.user_metadata or {}, message.display_name)
        warning = sdk_warning(message.sdk_version)
        return reply({"type": "create_session", "session_id": session.session_id, "warning_message": warning})

    async def session_heartbeat(self, request: Request) -> Response:
        """Note that the client lives."""
        message = requests.decode(requests.SessionHeartbeatRequest, await read_body(request))
        self._handlers.sessions.open(message.session_id)
        return reply({"type": "session_heartbeat"})

    async def telemetry(self, request: Request) -> Response:
        """Take telemetry, and drop it."""
        await read_body(request)
        return reply({"status": "accepted"})

    async def create_sampling_session(self, message: requests.CreateSamplingSessionRequest) -> Mapping[str, Any]:
        """Open a sampler; a checkpoint is looked up beside the event loop."""
        return await self._handlers.samplers.create(message, run_in_threadpool)

    async def forward_backward(self, request: Request) -> Response:
        """Take in a batch, which comes in protobuf."""
        message = parse_forward_backward(await read_body(request))
        try:
            return reply(self._handlers.forward_backward(message))
        except RequestError as error:
            self._handlers.lanes.skip(message.model_id, message.seq_id, str(error))
            raise

    def ordered(self, message_type: type[M], answer: Answer[M]) -> Endpoint:
        """Return an endpoint for requests that run in order: one that is refused must not hold up those behind it."""

        def refused(body: bytes, reason: str) -> None:
            model_id, sequence = _position(body)
            if sequence >= 0:
                self._handlers.lanes.skip(model_id, sequence, reason)

        return _json(message_type, answer, refused)

    async def retrieve_future(self, request: Request) -> Response:
        """Wait for a result. 408 tells the SDK to ask again, and, unlike a 200 that says so, logs nothing there."""
        message = requests.decode(requests.FutureRetrieveRequest, await read_body(request))
        if session := self._handlers.sessions.of(message.request_id):
            session.silent_s = 0
        result = await self._handlers.lanes.retrieve(message.request_id, RETRIEVE_TIMEOUT_S)
        if result is None:
            return reply({"type": "try_again", "request_id": message.request_id, "queue_state": "active"}, 408)
        return Response(result.body, media_type=result.content_type)


def reply(data: Mapping[str, Any], status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(json.dumps(data), status, media_type=JSON)


def _json(
    message_type: type[M], answer: Answer[M], refused: Callable[[bytes, str], None] = lambda body, reason: None
) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        body = await read_body(request)
        try:
            answered = answer(requests.decode(message_type, body))
            return reply(await answered if isinstance(answered, Awaitable) else answered)
        except RequestError as error:
            refused(body, str(error))
            raise

    return endpoint


def _post(path: str, endpoint: Endpoint) -> Route:
    return Route(f"/api/v1/{path}", endpoint, methods=["POST"])


def _position(body: bytes) -> tuple[str, int]:
    """Return a refused request's model and sequence number, if they can be read; otherwise an empty text and -1."""
    with contextlib.suppress(ValueError, AttributeError):
        data = parse_json(body)
        model_id, sequence = data.get("model_id"), data.get("seq_id")
        if isinstance(model_id, str) and type(sequence) is int and 0 <= sequence < 2**63:
            return model_id, sequence
    return "", -1


async def _on_request_error(request: Request, error: Exception) -> Response:
    return reply({"detail": str(error)}, error.status if isinstance(error, RequestError) else 400)


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    return reply({"detail": one_sentence(f"{request.method} {request.url.path[:200]} is not served here.")}, status)


async def _on_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed.", request.method, request.url.path[:200], exc_info=error)
    return reply({"detail": f"The embedded service failed with {type(error).__name__}; its log has the details."}, 500)
