"""Runs a chat template, a program that came with a model, within bounds of time and memory."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import TypeVar

from tinker_utils.basics.threads import in_background

T = TypeVar("T")
# Generous: a thousand conversations are rendered in hundredths of a second.
_SECONDS, _BYTES = 10.0, 1 << 30
_LOOK_SECONDS = 0.05


class _EndedError(BaseException):
    """Ends a template; it cannot catch this."""


def within_bounds(render: Callable[[], T]) -> T:
    """Return what `render` returns, on a thread of its own, and end it where it takes too much.

    Raises:
        TimeoutError, MemoryError: it took more than 10 seconds, or a gibibyte.
    """
    thread: list[int] = []

    def run() -> T:
        thread.append(threading.get_ident())
        return render()

    before, deadline = _resident_bytes(), time.monotonic() + _SECONDS
    rendering = in_background(run, "chat template")
    while not wait([rendering], _LOOK_SECONDS).done:
        large = _resident_bytes() - before > _BYTES
        if large or time.monotonic() > deadline:
            # Python's own way to stop a thread: at its next line.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread[0]), ctypes.py_object(_EndedError))
            if large:
                raise MemoryError(f"it took over {_BYTES / 2**30:g} GiB")
            raise TimeoutError(f"it took over {_SECONDS:.0f} s")
    return rendering.result()


def has_powers(template: str) -> bool:
    """Return whether a template raises to a power: 9 ** 9 ** 9 is one line, and nothing can end it."""
    import jinja2

    try:
        return any(token[2] == "**" for token in jinja2.Environment().lex(template))
    except jinja2.TemplateSyntaxError:
        return False  # the tokenizer will say so


def _resident_bytes() -> int:
    """Return this process's memory; 0 where the system does not tell it so."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
