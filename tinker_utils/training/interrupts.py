"""Interrupts after the first one: ipykernel cancels a cell's task once, and lets the button do nothing after that."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any, Self

_armed: set[asyncio.Task[Any]] = set()
_in_force: list[Any] = []  # the handler that ours has taken the place of, while it has


class Interrupts:
    """Inside the block, `rearm` makes the next SIGINT cancel the current task again; what was in force comes back.

    Several tasks may be armed at a time, as when runs train side by side: one SIGINT cancels them all. There is one
    handler for all tasks. With one per run, run B would save run A's handler as the original, and restore it after A
    has ended.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    def rearm(self) -> None:
        """Let the next interrupt cancel the task that calls this; on the main thread, which alone gets signals."""
        task = asyncio.current_task()
        if self._task is not None or task is None or threading.current_thread() is not threading.main_thread():
            return
        self._task = task
        _armed.add(task)
        if signal.getsignal(signal.SIGINT) != _cancel:
            _in_force[:] = [signal.signal(signal.SIGINT, _cancel)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._task is None:
            return
        _armed.discard(self._task)
        self._task = None
        # Another handler may have taken over since; that one is left in force.
        if not _armed and signal.getsignal(signal.SIGINT) == _cancel:
            # None stands for a handler that was not installed from Python, and cannot be from here.
            before = _in_force.pop()
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _cancel(*_: object) -> None:
    for task in _armed:
        task.get_loop().call_soon_threadsafe(task.cancel)
