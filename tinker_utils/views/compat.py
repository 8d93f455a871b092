"""What the controls need of ipykernel and cannot ask for: docs/notebooks.md tells the cause, with a small example.

A front end sends a widget's next change only when the kernel has said, by the status `idle`, that it is done with the
one before. ipykernel 7.4 takes a change in while a cell awaits, and says nothing: each control then takes one change,
and is dead for good. So its answer is given here. Where the kernel gives it, too, the second one is read by nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from typing import Any


def answer_changes(controls: Iterable[Any]) -> None:
    """Let the front end know, also while a cell awaits, when a change of one of these widgets was taken in."""
    for control in controls:
        if getattr(control.comm, "kernel", None) is not None:  # outside a notebook there is none
            control.comm.on_msg(partial(_take_in, control))


def _take_in(control: Any, message: dict[str, Any]) -> None:
    kernel = control.comm.kernel
    control._handle_msg(message)
    if threading.current_thread() is threading.main_thread():  # elsewhere no cell awaits, and the kernel answers
        kernel._publish_status("idle", "shell", parent=message)
        # The cell goes on: a kernel that seems idle may be shut down by its server.
        if (cell := getattr(kernel, "_main_asyncio_lock", None)) is not None and cell.locked():
            kernel._publish_status("busy", "shell", parent=message)
