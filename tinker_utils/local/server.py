"""Loads the model, opens the store, binds a loopback port, says where, and serves until told to end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable

import torch
import uvicorn

from tinker_utils.errors import ServiceError

from .base import Base
from .engine import Engine
from .guard import Guard
from .http import BoundedProtocol
from .protocol import build_app, sdk_warning
from .served import Served
from .service import Service
from .store import Store

KEY_VARIABLE = "TINKER_UTILS_LOCAL_KEY"
"""Environment variable that gives the server a key, so that clients stay valid when it is started again."""

_SWEEP_S = 60.0

logger = logging.getLogger(__name__)


def serve(
    served: Served, store: Store, port: int, device: str, threads: int | None, announce: Callable[[str], None]
) -> None:
    """Run the server until it is told to end.

    Args:
        served: the model to load.
        store: where checkpoints are.
        port: a loopback port; 0 lets the system choose.
        device: "auto", "cpu" or "cuda".
        threads: threads that torch computes with; None leaves the choice to torch.
        announce: gets one line of JSON with address and key, as soon as the server can be used.

    Raises:
        ServiceError: the model or the port cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    warning = sdk_warning(importlib.metadata.version("tinker"))
    if warning:
        logger.warning("%s", warning)
    service = Service(Engine(Base(served.source, device)), store, served)
    # The port is bound before it is announced, so a client cannot be faster than the server.
    with contextlib.closing(_listen(port)) as listener:
        port = listener.getsockname()[1]
        base_url = f"http://127.0.0.1:{port}"
        key = os.environ.get(KEY_VARIABLE) or f"tml-{secrets.token_urlsafe(32)}"
        app = Guard(build_app(service, base_url), key, port)
        address = json.dumps({"base_url": base_url, "api_key": key})
        asyncio.run(_run(app, service, listener, lambda: announce(address)))


def _listen(port: int) -> socket.socket:
    # With the protocol spelled out: asyncio sets TCP_NODELAY only on sockets that say they are TCP, and without it
    # every reply waits some 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ServiceError(f"The embedded service cannot listen on port {port}: {error.strerror}.") from error
    return listener


async def _run(app: Guard, service: Service, listener: socket.socket, ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = uvicorn.Server(config)
    sweep = asyncio.create_task(_sweep(service))
    ready()
    await server.serve(sockets=[listener])
    sweep.cancel()


async def _sweep(service: Service) -> None:
    """Now and then end the sessions of clients that are gone, and remove what has expired."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        for session in service.sessions.idle():
            service.finish(session, "The session ended, because its client sent nothing for too long.")
        await asyncio.to_thread(service.store.prune)
