"""Runs a call in a thread of its own, which holds up neither the end of the process nor who cannot wait so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T], name: str) -> Future[T]:
    """Return the future of what a call returns or raises.

    An executor's threads are joined when Python exits, and would wait for a service that no longer answers; a daemon
    thread is not.
    """
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def within(seconds: float, call: Callable[[], T], name: str) -> T:
    """Return what a call returns; one that takes longer is left to itself.

    The time limit of a socket begins anew with each byte: a server that sends one now and then never reaches it.

    Raises:
        TimeoutError: it took longer.
    """
    try:
        return in_background(call, name).result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error
