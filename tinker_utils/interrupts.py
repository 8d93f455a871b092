"""Interrupts after the first one: ipykernel cancels a cell's task once, and lets the button do nothing after that."""

from __future__ import annotations

import asyncio
import signal
import threading
from types import TracebackType
from typing import Any, Self


class Interrupts:
    """Inside the block, `rearm` makes the next SIGINT cancel the current task again; what was in force comes back."""

    def __init__(self) -> None:
        self._before: Any = None

    def rearm(self) -> None:
        """Let the next interrupt cancel the task that calls this; on the main thread, which alone gets signals."""
        if self._before is not None or threading.current_thread() is not threading.main_thread():
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(*_: object) -> None:
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        self._before = signal.signal(signal.SIGINT, cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
