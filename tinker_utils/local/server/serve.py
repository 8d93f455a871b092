"""Loads the model, binds a loopback port, says where, and serves until told to end.

The main thread computes, another answers requests, and malloc keeps what a step frees for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.metadata
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable

import torch
import uvicorn

from tinker_utils.basics.threads import in_background
from tinker_utils.errors import ServiceError
from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.server.app import build_app, sdk_warning
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.model_source import Served
from tinker_utils.local.server.scheduler import Worker
from tinker_utils.local.server.security import BoundedProtocol, Guard
from tinker_utils.local.store.store import Store

KEY_VARIABLE = "TINKER_UTILS_LOCAL_KEY"
"""Environment variable that gives the server a key, so that clients stay valid when it is started again."""

_SWEEP_S = 60.0

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAX_PIECE_BYTES = 32 << 20  # the most that every glibc takes
_MAX_KEPT_BYTES = 512 << 20

logger = logging.getLogger(__name__)


def run_server(
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
    keep_freed()
    worker = Worker()
    handlers = Handlers(Engine(Base(served.source, device)), store, served, worker)
    # The port is bound before it is announced, so a client cannot be faster than the server.
    with contextlib.closing(_listen(port)) as listener:
        port = listener.getsockname()[1]
        base_url = f"http://127.0.0.1:{port}"
        key = os.environ.get(KEY_VARIABLE) or f"tml-{secrets.token_urlsafe(32)}"
        app = Guard(build_app(handlers, base_url), key, port)
        address = json.dumps({"base_url": base_url, "api_key": key})
        _serve_and_compute(_server(app), handlers, listener, lambda: announce(address))


def _serve_and_compute(
    server: uvicorn.Server, handlers: Handlers, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Answer requests on a thread, and compute on this one, the main thread, until a signal ends the server.

    Elsewhere the same computation takes a third longer on two cores: PyTorch's threads belong to the thread that
    first needs them, where the model was loaded, and a second team of them would only sleep and wake in its turns; and
    malloc serves the main thread from memory that it need not give back.
    """
    caught: list[int] = []

    def end(number: int, _: object) -> None:
        caught.append(number)
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    answering = in_background(lambda: asyncio.run(_run(server, handlers, listener, ready)), "http")
    answering.add_done_callback(lambda _: handlers.worker.end())
    handlers.worker.run()
    answering.result()
    for number, handler in before.items():
        signal.signal(number, handler)
    for signalled in caught[:1]:
        signal.raise_signal(signalled)


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


def _server(app: Guard) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    return uvicorn.Server(config)


async def _run(server: uvicorn.Server, handlers: Handlers, listener: socket.socket, ready: Callable[[], None]) -> None:
    sweep = asyncio.create_task(_sweep(handlers))
    ready()
    await server.serve(sockets=[listener])
    sweep.cancel()


async def _sweep(handlers: Handlers) -> None:
    """End the sessions of clients that are gone, now and then, and remove what has expired."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        for session in handlers.sessions.idle():
            handlers.finish(session, "The session ended, because its client sent nothing for too long.")
        await asyncio.to_thread(handlers.store.prune)


def keep_freed() -> None:
    """Let what one step frees serve the next, up to 512 MiB, where malloc is glibc's.

    It gives large pieces back at once otherwise, and the next step gets them anew, page by page: that takes several
    hundredths of a step's time. Larger pieces still come from the system and go back to it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_PIECE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MAX_KEPT_BYTES)
