"""The lock file of a directory, which names its holder; the system lets go of it however the holder's process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from filelock import lock_descriptor

from tinker_utils.basics.files import NotOwnError, own, regular

_SIGNED, _HOST = "process ", " on "
# For how many seconds a lock is tried for, and how often: `is_free` takes it for a moment to find out.
_PATIENCE_S, _PAUSE_S = 0.2, 0.02
# What a file system says that has no locks, as those of some clusters and object stores.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def open_lock(path: Path) -> int:
    """Open a lock file, made if it is missing, and return its descriptor.

    Raises:
        NotOwnError: it is a link, another user's, or was not made for a lock.
        OSError: it cannot be opened.
    """
    descriptor = own(path, os.O_RDWR | os.O_CREAT)
    signed = holder(descriptor)
    if signed and not signed.startswith(_SIGNED):
        os.close(descriptor)
        raise NotOwnError(errno.EPERM, f"{path.name} is a file that was not made for a lock", str(path))
    return descriptor


def take(descriptor: int, patience_s: float = _PATIENCE_S) -> bool:
    """Lock a file that is open; False if another process holds it for that many seconds.

    Raises:
        OSError: it cannot be locked; the number is one of `NO_LOCKS` where the file system is to blame.
    """
    deadline = time.monotonic() + patience_s
    while not lock_descriptor(descriptor, blocking=False):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def sign(descriptor: int) -> None:
    """Write into a locked file who holds it."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"{_SIGNED}{os.getpid()}{_HOST}{socket.gethostname()}".encode())


def holder(descriptor: int) -> str:
    """Return who signed it last, `process N on HOST`; "" if nobody did, or where a locked file cannot be read."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, 200).decode("utf-8", "replace")
    return ""


def is_free(path: Path) -> bool:
    """Return whether it is certain that no process holds the lock.

    One on another machine, which need not see this one's locks, leaves that open.
    """
    try:
        free, who = look(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return free and who.partition(_HOST)[2] in ("", socket.gethostname())


def look(path: Path) -> tuple[bool, str]:
    """Return whether the lock could be taken, which is given back at once, and who signed it last.

    Raises:
        OSError: there is no such file, or it cannot be read or locked.
    """
    descriptor = regular(path, os.O_RDONLY)
    try:
        return lock_descriptor(descriptor, blocking=False), holder(descriptor)
    finally:
        os.close(descriptor)
