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
import threading
from collections.abc import Callable, Iterator

import torch
import uvicorn

from tinker_utils.basics.threads import in_background
from tinker_utils.errors import ServiceError
from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.engine import Engine
from tinker_utils.local.server.app import build_app, sdk_warning
from tinker_utils.local.server.connections import BACKLOG, BoundedProtocol
from tinker_utils.local.server.handlers import Handlers
from tinker_utils.local.server.model_source import Served
from tinker_utils.local.server.neighbours import Neighbours
from tinker_utils.local.server.scheduler import Worker
from tinker_utils.local.server.security import Guard
from tinker_utils.local.store.store import Store

KEY_VARIABLE = "TINKER_UTILS_LOCAL_KEY"
"""Environment variable that gives the server a key, so that clients stay valid when it is started again."""

_PRUNE_S = 60.0
_WAITING = 2048  # connections that the system holds until they are accepted
_TELL_S = 1.0  # after a signal, until nobody is answered any more
_END_S = 3.5  # after a signal, until the process ends in the middle of whatever it is at

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
        KeyboardInterrupt: it was told to end by SIGINT; after SIGTERM it returns.
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
    with _signals() as told:
        answering = in_background(lambda: asyncio.run(_run(server, handlers, listener, told, ready)), "http")
        answering.add_done_callback(lambda _: handlers.worker.end())
        handlers.worker.run()
        if answering.result() == signal.SIGINT:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Inside the block, the numbers of SIGINT and SIGTERM come out of a socket, and do nothing else.

    Python's own handlers run on the main thread, which may be inside one operation of PyTorch for a minute.
    """
    told, tell = socket.socketpair()
    with told, tell:
        told.setblocking(False)
        tell.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        woken = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield told
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(port: int) -> socket.socket:
    # With the protocol spelled out: asyncio sets TCP_NODELAY only on sockets that say they are TCP, and without it
    # every reply waits some 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(f"The embedded service cannot listen on port {port}: {error.strerror}.") from error
    return listener


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and let more connections wait in the system than are accepted at a time."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_WAITING)


def _server(app: Guard) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        backlog=BACKLOG,
        log_level="error",  # what is no request is answered and closed; whoever sends it does not write the log
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        ws="none",
    )
    return _Server(config)


async def _run(
    server: uvicorn.Server, handlers: Handlers, listener: socket.socket, told: socket.socket, ready: Callable[[], None]
) -> int:
    """Answer requests until a signal comes; returns its number."""
    signals: list[int] = []

    def told_to_end() -> None:
        first = not signals
        signals.extend(told.recv(64))
        if first:
            # Nothing can interrupt an operation of PyTorch, and no write to the store needs to be waited for: what is
            # not complete is not there.
            last = threading.Timer(_END_S, os._exit, [128 + signal.SIGINT if signals[0] == signal.SIGINT else 0])
            last.daemon = True
            last.start()
            handlers.finish_all("The embedded service was told to end; a run resumes from its latest checkpoint.")
            loop.call_later(_TELL_S, end)

    def end() -> None:
        server.should_exit = True
        for connection in _connections(server):
            connection.transport.abort()

    loop = asyncio.get_running_loop()
    loop.add_reader(told, told_to_end)
    neighbours = Neighbours(handlers.engine.base.threads)
    tasks = [asyncio.create_task(each) for each in (_count_seconds(server, handlers, neighbours), _prune(handlers))]
    ready()
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    return signals[0]


def _connections(server: uvicorn.Server) -> list[BoundedProtocol]:
    return [each for each in server.server_state.connections if isinstance(each, BoundedProtocol)]


async def _count_seconds(server: uvicorn.Server, handlers: Handlers, neighbours: Neighbours) -> None:
    """Count the seconds of all whose client has to act. While this process is stopped, none passes."""
    while True:
        await asyncio.sleep(1)
        for connection in _connections(server):
            connection.tick()
        handlers.tick()
        neighbours.look()


async def _prune(handlers: Handlers) -> None:
    """Remove what has expired, now and then."""
    while True:
        await asyncio.sleep(_PRUNE_S)
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
