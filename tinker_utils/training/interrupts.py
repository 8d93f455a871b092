"""Interrupts after the first one: ipykernel cancels a cell's task once, and lets the button do nothing after that."""

from __future__ import annotations

import asyncio
import signal
import threading
from types import TracebackType
from typing import Any, Self

_Target = tuple[asyncio.AbstractEventLoop, "asyncio.Task[Any]"]


class _Handler:
    """The one handler of all runs that are armed: it comes with the first of them and goes with the last.

    One for each run would save another's as what was in force, and bring that back when its run has long ended.
    """

    def __init__(self) -> None:
        self._targets: set[_Target] = set()
        self._before: Any = None

    def add(self, target: _Target) -> None:
        """Let each interrupt from now on cancel this task, too; on the main thread."""
        self._targets.add(target)
        if signal.getsignal(signal.SIGINT) != self._cancel:
            self._before = signal.signal(signal.SIGINT, self._cancel)

    def remove(self, target: _Target) -> None:
        """Take the task out; with the last one, what was in force comes back, unless another handler has taken over."""
        self._targets.discard(target)
        if not self._targets and signal.getsignal(signal.SIGINT) == self._cancel:
            # None stands for a handler that was not installed from Python, and cannot be from here.
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _cancel(self, *_: object) -> None:
        for loop, task in self._targets:
            loop.call_soon_threadsafe(task.cancel)


_HANDLER = _Handler()


class Interrupts:
    """Inside the block, `rearm` makes the next SIGINT cancel the current task again; what was in force comes back.

    Several tasks may be armed at a time, as when runs train side by side: one SIGINT cancels them all.
    """

    def __init__(self) -> None:
        self._target: _Target | None = None

    def rearm(self) -> None:
        """Let the next interrupt cancel the task that calls this; on the main thread, which alone gets signals."""
        task = asyncio.current_task()
        if self._target is not None or task is None or threading.current_thread() is not threading.main_thread():
            return
        self._target = (asyncio.get_running_loop(), task)
        _HANDLER.add(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._target is not None:
            _HANDLER.remove(self._target)
            self._target = None
